/** The device panel: a sidebar tab that shows where the models of LTX-2 Two-Stage live, and moves them. */
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { size } from './panel/format.js'
import { createView } from './panel/view.js'
import { speak, together } from './panel/words.js'

const EVENT = 'ltx2.status'
/** The queue changed: a run has begun or ended, which no node of ours says. Sent to every page, after the fact. */
const QUEUE_EVENT = 'status'

const LOCALE = 'Comfy.Locale'
const TAB = 'ltx2-models'

const actions = {
  release: () => act('release', {}, ({ freed }) => words.say('released', { size: size(freed) })),
  restore: () => act('restore', {}, ({ restored }) => words.say('restored', { size: size(restored) })),
  changeMode: (mode) => act('mode', { mode }, () => '')
}
let words = speak('en')
let view = createView(actions, words)
/** The sidebar's element while the panel is open in it. */
let place = null

/** Asks the server to do something, and shows its answer: a new status, or why not and what to do. */
async function act(action, body, done) {
  view.tell(action === 'restore' ? words.say('restoring') : '')
  try {
    const response = await api.fetchApi(`/ltx2/${action}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body)
    })
    const answer = await response.json()
    if (response.ok) view.show(answer)
    view.tell(response.ok ? done(answer) : together(words.hear(answer.error), words.hear(answer.fix)), !response.ok)
  } catch {
    view.tell(words.say('unreachable'), true)
  }
  // A mode that was refused: the page shows what is in force
  if (action === 'mode') refresh()
}

async function refresh() {
  if (!place) return
  try {
    const response = await api.fetchApi('/ltx2/status', { cache: 'no-store' })
    if (response.ok) view.show(await response.json())
  } catch {
    // The page itself says that the connection is lost; the status comes when it is back
  }
}

/** The panel and its tab in a language of ComfyUI's page. */
function changeLanguage(locale) {
  words = speak(locale)
  view = createView(actions, words)
  const tab = app.extensionManager.getSidebarTabs?.().find(({ id }) => id === TAB)
  if (tab) tab.tooltip = words.say('tooltip')
  if (place) render(place)
}

function render(container) {
  place = container
  container.replaceChildren(view.element)
  refresh()
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
    api.addEventListener(EVENT, ({ detail }) => place && view.show(detail))
    for (const event of [QUEUE_EVENT, 'reconnected']) api.addEventListener(event, refresh)
    app.ui.settings.addEventListener(`${LOCALE}.change`, ({ detail }) => changeLanguage(detail.value))
    changeLanguage(app.extensionManager.setting.get(LOCALE))
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: 'pi pi-microchip',
      title: 'LTX-2', // a name, in every language
      tooltip: words.say('tooltip'),
      type: 'custom',
      render,
      destroy: () => {
        place = null
      }
    })
  }
})
