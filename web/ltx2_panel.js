/** The device panel: a sidebar tab that shows where the models of LTX-2 Two-Stage live, and moves them. */
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { size } from './panel/format.js'
import { createView } from './panel/view.js'

const EVENT = 'ltx2.status'
/** The queue changed: a run has begun or ended, which no node of ours says. Sent to every page, after the fact. */
const QUEUE_EVENT = 'status'

const view = createView({
  release: () => act('release', {}, ({ freed }) => `Released ${size(freed)}. The next run restores what it needs.`),
  restore: () => act('restore', {}, ({ restored }) => `Restored ${size(restored)}.`),
  changeMode: (mode) => act('mode', { mode }, () => '')
})
let mounted = false

/** Asks the server to do something, and shows its answer: a new status, or why not and what to do. */
async function act(action, body, done) {
  view.say(action === 'restore' ? 'Restoring …' : '')
  try {
    const response = await api.fetchApi(`/ltx2/${action}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body)
    })
    const answer = await response.json()
    if (response.ok) view.show(answer)
    view.say(response.ok ? done(answer) : `${answer.error} ${answer.fix}`, !response.ok)
  } catch {
    view.say('ComfyUI does not answer. Check that it is running.', true)
  }
  // A mode that was refused: the page shows what is in force
  if (action === 'mode') refresh()
}

async function refresh() {
  if (!mounted) return
  try {
    const response = await api.fetchApi('/ltx2/status', { cache: 'no-store' })
    if (response.ok) view.show(await response.json())
  } catch {
    // The page itself says that the connection is lost; the status comes when it is back
  }
}

function addStyles() {
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = new URL('./panel/panel.css', import.meta.url).href
  document.head.append(link)
}

app.registerExtension({
  name: 'ltx2.two-stage.panel',
  setup() {
    // Older front ends have no sidebar
    if (!app.extensionManager?.registerSidebarTab) return
    addStyles()
    api.addEventListener(EVENT, ({ detail }) => mounted && view.show(detail))
    for (const event of [QUEUE_EVENT, 'reconnected']) api.addEventListener(event, refresh)
    app.extensionManager.registerSidebarTab({
      id: 'ltx2-models',
      icon: 'pi pi-microchip',
      title: 'LTX-2',
      tooltip: 'LTX-2 models: memory, device mode, times',
      type: 'custom',
      render: (container) => {
        container.replaceChildren(view.element)
        mounted = true
        refresh()
      },
      destroy: () => {
        mounted = false
      }
    })
  }
})
