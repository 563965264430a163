/** Key -> text; {names} are filled in. Languages beside this one have the same keys, in a file of their own. */
export const words = {
  tooltip: 'LTX-2 models: memory, device mode, times',
  heading: 'LTX-2 models',
  pair: '{name}: {value}',
  list: '{rest}, {last}',

  empty: 'No models are open',
  emptyHint: 'Queue a workflow with LTX-2 Loader. Where its models live, and what each stage costs, is shown here.',

  progress: 'Progress of the stage',
  steps: '{stage}: {done} of {total} steps',
  frames: '{stage}: {done} of {total} frames',
  left: '{stage}, about {time} left',

  mode: 'Device mode',
  auto: 'auto',
  fixed: 'fixed',
  nextRun: 'For the next run',
  noGpu: 'Without a GPU every mode keeps the weights in host memory.',
  reload: 'The next run takes it and loads the transformer again.',
  validity: 'A choice here holds until ComfyUI restarts or LTX-2 Loader’s settings change.',

  memory: 'Memory',
  vram: 'VRAM',
  hostMemory: 'Host memory',
  pinned: 'Pinned memory',
  free: '{free} free of {total}',
  ours: 'These models',
  other: 'Other use',

  release: 'Release',
  releaseHint: 'Gives the memory back; the next run restores what it needs',
  released: 'Released {size}. The next run restores what it needs.',
  restore: 'Restore',
  restoreHint: 'Brings back what was released',
  restoring: 'Restoring …',
  restored: 'Restored {size}. The next run brings what else it needs.',
  busy: 'A run is in progress',
  nothingLoaded: 'Nothing is loaded',
  nothingReleased: 'Nothing was released',
  stop: '{sentence}.',
  unreachable: 'ComfyUI does not answer. Check that it is running.',

  where: 'What is where',
  component: 'Component',
  host: 'Host',

  runs: 'Last runs',
  peak: 'Peak memory'
}
