/** Width and height step by what the chosen preset takes: two cells of the video VAE, or one where there is one stage. */
import { app } from '../../scripts/app.js'

const NODES = new Set(['LTX2TwoStageDenoise', 'LTX2TwoStageGenerate'])
const CELL = 32

function fit(node) {
  const widget = (name) => node.widgets?.find((one) => one.name === name)
  // A recipe over a link may be of one stage, whatever the preset
  const linked = node.inputs?.find((input) => input.name === 'recipe')?.link != null
  const step = linked || widget('preset')?.value === 'one-stage' ? CELL : 2 * CELL
  for (const name of ['width', 'height']) {
    // LiteGraph's own "step" counts in tenths
    if (widget(name)) Object.assign(widget(name).options, { step: 10 * step, step2: step })
  }
}

app.registerExtension({
  name: 'ltx2.two-stage.sizes',
  nodeCreated(node) {
    if (!NODES.has(node.comfyClass)) return
    const preset = node.widgets?.find((widget) => widget.name === 'preset')
    const changed = preset?.callback
    if (preset) {
      preset.callback = function (...values) {
        changed?.apply(this, values)
        fit(node)
      }
    }
    const connected = node.onConnectionsChange
    node.onConnectionsChange = function (...values) {
      connected?.apply(this, values)
      fit(node)
    }
    fit(node)
  },
  loadedGraphNode(node) {
    if (NODES.has(node.comfyClass)) fit(node)
  }
})
