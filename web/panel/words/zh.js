export const words = {
  tooltip: 'LTX-2 模型：内存、设备模式、耗时',
  heading: 'LTX-2 模型',
  pair: '{name}：{value}',
  list: '{rest}，{last}',

  empty: '没有打开的模型',
  emptyHint: '请运行带有“LTX-2 加载器”的工作流。模型放在哪里、各阶段的开销，都会显示在这里。',

  progress: '当前阶段的进度',
  steps: '{stage}：第 {done} 步，共 {total} 步',
  frames: '{stage}：第 {done} 帧，共 {total} 帧',
  left: '{stage}，剩余约 {time}',

  mode: '设备模式',
  auto: '自动',
  fixed: '固定',
  nextRun: '用于下次运行',
  noGpu: '没有 GPU 时，各模式的权重都在内存中。',
  reload: '从下次运行起生效，届时会重新载入 Transformer。',
  validity: '在这里的选择一直有效，直到 ComfyUI 重启或“LTX-2 加载器”的设置改变。',

  memory: '显存与内存',
  vram: '显存',
  hostMemory: '内存',
  pinned: '锁页内存',
  free: '可用 {free}，共 {total}',
  ours: '这些模型',
  other: '其他占用',

  release: '释放',
  releaseHint: '归还内存；下次运行会恢复所需的部分',
  released: '已释放 {size}。下次运行会恢复所需的部分。',
  restore: '恢复',
  restoreHint: '重新载入已释放的部分',
  restoring: '正在恢复……',
  restored: '已恢复 {size}。其余所需的部分在下次运行时载入。',
  busy: '有工作流正在运行',
  nothingLoaded: '没有已载入的模型',
  nothingReleased: '没有已释放的部分',
  stop: '{sentence}。',
  unreachable: 'ComfyUI 没有响应。请检查它是否在运行。',

  where: '各组件的位置',
  component: '组件',
  host: '内存',

  runs: '最近的运行',
  peak: '峰值内存'
}

/** What the server says -> the same in Chinese. */
export const server = {
  'Encoding text': '文本编码',
  'Stage 1': '第 1 阶段',
  Upsampling: '放大',
  'Stage 2': '第 2 阶段',
  Decoding: '解码',

  'Chosen by what the machine has.': '按机器的配置选择。',
  'Both transformers stay on the GPU.': '两组 Transformer 权重都留在 GPU 上。',
  'The second transformer is made on the GPU for stage 2.': '第二组 Transformer 权重在第 2 阶段时于 GPU 上生成。',
  'One transformer on the GPU, a clean copy in host memory.': 'GPU 上一组 Transformer 权重，内存中一份原始副本。',
  'One transformer, its LoRA applied while it runs.': '只有一组 Transformer 权重，LoRA 在计算时叠加。',

  'set in the device panel': '在设备面板中设定',
  'without a GPU one copy of the weights serves both stages': '没有 GPU，两个阶段共用一组权重',

  'Base transformer': '基础 Transformer',
  'Stage-2 transformer': '第 2 阶段 Transformer',
  LoRAs: 'LoRA',
  'Text encoder': '文本编码器',
  'VAEs and vocoder': 'VAE 和声码器',
  Upsampler: '放大模型',

  'not chosen in LTX-2 Loader': '“LTX-2 加载器”中未选择',
  'made when stage 2 first runs': '首次运行第 2 阶段时生成',
  'made for each stage 2': '每次运行第 2 阶段时生成',
  'merged into the base for stage 2': '第 2 阶段时并入基础 Transformer',
  'the base with its LoRA': '基础 Transformer 加上 LoRA',
  'loaded when first needed': '首次需要时载入',

  'No models are open.': '没有打开的模型。',
  'Queue a workflow with LTX-2 Loader first.': '请先运行带有“LTX-2 加载器”的工作流。',
  'A run with these models is in progress.': '使用这些模型的工作流正在运行。',
  'Release them when it has ended, or stop it.': '请等它结束后再释放，或停止它。',
  'A workflow is running or waiting.': '有工作流正在运行或等待。',
  'Nothing is lost: a run restores what it needs by itself.': '不会有任何损失：运行时会自动恢复所需的部分。'
}
