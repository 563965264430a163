/**
 * The panel's page: builds its elements once and fills them from a status (nodes/panel.py). Controls are never replaced,
 * so that the keyboard's focus stays where it is while events come in.
 */
import { clock, duration, fileName, roughly, size } from './format.js'
import { together } from './words.js'

/** The colours of the report's chart: these stages have the first, others the next. */
const COLOURS = 8
const STAGES = ['text', 'stage_1', 'upsample', 'stage_2', 'decode']

/** An element with properties (attributes where the name has a dash, or is role) and children. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role') element.setAttribute(name, value)
    else element[name] = value
  }
  element.append(...children)
  return element
}

function section(name, title, ...children) {
  const heading = h('h3', { id: `ltx2-${name}` }, title)
  return h('section', { 'aria-labelledby': heading.id }, heading, ...children)
}

/** A bar of parts of a whole, with a line of figures above it and its parts in words below: all say the same. */
function meter(say) {
  const label = h('span')
  const figures = h('span', { className: 'ltx2-figures' })
  const bar = h('div', { className: 'ltx2-bar', role: 'img' })
  const keys = h('ul', { className: 'ltx2-keys' })
  const element = h('div', { className: 'ltx2-meter' }, h('div', { className: 'ltx2-line' }, label, figures), bar, keys)
  /** @param {{name: string, value: number, kind: string}[]} parts */
  function show(title, text, parts, total) {
    label.textContent = title
    figures.textContent = text
    bar.setAttribute('aria-label', say('pair', { name: title, value: text }))
    keys.replaceChildren(
      ...parts.map((part) =>
        h('li', {}, h('i', { className: part.kind, 'aria-hidden': 'true' }), `${part.name} ${size(part.value)}`)
      )
    )
    bar.replaceChildren(
      ...parts
        .filter((part) => part.value > 0)
        .map((part) => {
          const segment = h('span', {
            className: part.kind,
            title: say('pair', { name: part.name, value: size(part.value) })
          })
          segment.style.width = `${total > 0 ? Math.min(100, (100 * part.value) / total) : 0}%`
          return segment
        })
    )
  }
  return { element, show }
}

/**
 * @param {{release: () => void, restore: () => void, changeMode: (name: string) => void}} actions
 * @param {ReturnType<import('./words.js').speak>} language
 */
export function createView(actions, { language, say, hear }) {
  let busy = false
  const subtitle = h('p', { className: 'ltx2-faint ltx2-files' })
  const stageText = h('span')
  const stageBar = h('progress', { max: 1, value: 0, 'aria-label': say('progress') })
  const stage = h('div', { className: 'ltx2-stage', hidden: true }, stageText, stageBar)
  const message = h('p', { className: 'ltx2-message', role: 'status', hidden: true })

  const empty = h(
    'div',
    { className: 'ltx2-empty' },
    h('i', { className: 'pi pi-microchip', 'aria-hidden': 'true' }),
    h('p', {}, h('strong', {}, say('empty'))),
    h('p', { className: 'ltx2-faint' }, say('emptyHint'))
  )

  const modeName = h('strong', { className: 'ltx2-mode' })
  const modeOrigin = h('span', { className: 'ltx2-badge' })
  const modeReason = h('p', { className: 'ltx2-faint' })
  const modeSelect = h('select', { id: 'ltx2-mode-select', onchange: () => actions.changeMode(modeSelect.value) })
  const modeWords = h('p', { className: 'ltx2-faint', id: 'ltx2-mode-words' })
  modeSelect.setAttribute('aria-describedby', modeWords.id)
  const mode = section(
    'mode',
    say('mode'),
    h('div', { className: 'ltx2-line' }, modeName, modeOrigin),
    modeReason,
    h('div', { className: 'ltx2-field' }, h('label', { htmlFor: modeSelect.id }, say('nextRun')), modeSelect),
    modeWords
  )

  const vram = meter(say)
  const pinned = meter(say)
  const release = button(say('release'), actions.release)
  const restore = button(say('restore'), actions.restore)
  const memory = section(
    'memory',
    say('memory'),
    vram.element,
    pinned.element,
    h('div', { className: 'ltx2-buttons' }, release, restore)
  )

  const places = h('tbody')
  const placeHead = h('th', { scope: 'col' })
  const hostHead = h('th', { scope: 'col' }, say('host'))
  const where = section(
    'where',
    say('where'),
    h(
      'table',
      {},
      h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, h('span', { className: 'ltx2-hidden' }, say('component'))), placeHead, hostHead)),
      places
    )
  )

  const runList = h('div', { className: 'ltx2-runs' })
  const runs = section('runs', say('runs'), runList)

  const opened = h('div', { className: 'ltx2-opened' }, mode, memory, where)
  // Until the first status nothing is known, not even that no models are open
  empty.hidden = opened.hidden = runs.hidden = true
  const element = h(
    'div',
    { className: 'ltx2-panel', lang: language },
    h('header', {}, h('h2', {}, say('heading')), subtitle, stage),
    message,
    empty,
    opened,
    runs
  )

  function show(status) {
    const { models } = status
    empty.hidden = models !== null
    opened.hidden = models === null
    runs.hidden = status.runs.length === 0
    subtitle.hidden = models === null
    showStage(status.stage)
    // What was said during the run, such as why a button does nothing, holds no longer
    if (busy && !status.busy) tell('')
    busy = status.busy
    if (models) showModels(models, status)
    runList.replaceChildren(...runRows(status.runs, { language, say, hear }))
  }

  function showStage(now) {
    stage.hidden = !now
    if (!now) return
    stageText.textContent = stageWords(now)
    stageBar.max = Math.max(1, now.total)
    stageBar.value = now.done
  }

  function stageWords({ label, unit, done, total, seconds_left: left }) {
    const stage = unit ? say(unit, { stage: hear(label), done, total }) : hear(label)
    return left === null ? stage : say('left', { stage, time: roughly(left) })
  }

  function showModels(models, status) {
    const file = fileName(models.checkpoint)
    subtitle.replaceChildren(
      h('span', { title: models.checkpoint }, file),
      h('span', {}, `LTX-${models.generation}, ${models.dtype}, ${models.device}`)
    )
    const onGpu = models.place === 'GPU'
    showMode(models.mode, status.modes, onGpu)
    showMemory(models, onGpu)
    placeHead.textContent = onGpu ? 'GPU' : say('host')
    // Without a GPU there is one memory, and nothing has a second copy in it
    hostHead.hidden = !onGpu
    places.replaceChildren(...models.components.map((row) => placeRow(row, onGpu, hear)))
  }

  function showMode({ name, reason, setting, wanted }, modes, onGpu) {
    modeName.textContent = name
    modeOrigin.textContent = say(setting === 'auto' ? 'auto' : 'fixed')
    modeReason.textContent = sentence(hear(reason.replace(/^auto: /, '')))
    if (modeSelect.options.length !== modes.length) {
      modeSelect.replaceChildren(...modes.map((choice) => h('option', { value: choice.name }, choice.name)))
    }
    const next = wanted ?? setting
    modeSelect.value = next
    const words = hear(modes.find((choice) => choice.name === next)?.words ?? '')
    modeWords.textContent = together(onGpu ? words : together(words, say('noGpu')), say(wanted ? 'reload' : 'validity'))
  }

  function showMemory({ memory: all, pinned: locked, restorable }, onGpu) {
    const parts = [
      { name: say('ours'), value: all.ours, kind: 'ltx2-ours' },
      { name: say('other'), value: all.other, kind: 'ltx2-other' }
    ]
    const free = Math.max(0, all.total - all.ours - all.other)
    vram.show(say(onGpu ? 'vram' : 'hostMemory'), say('free', { free: size(free), total: size(all.total) }), parts, all.total)
    pinned.element.hidden = !onGpu
    const limit = locked.limit ?? locked.held
    pinned.show(
      say('pinned'),
      say('free', { free: size(Math.max(0, limit - locked.held)), total: size(limit) }),
      [{ name: say('ours'), value: locked.held, kind: 'ltx2-ours' }],
      limit
    )
    const idle = (nothing) => (busy ? say('busy') : nothing)
    disable(release, idle(all.ours === 0 ? say('nothingLoaded') : ''), say('releaseHint'))
    disable(restore, idle(restorable ? '' : say('nothingReleased')), say('restoreHint'))
  }

  /** A button that, where it cannot act, says why. */
  function button(label, action) {
    const disabled = (element) => element.getAttribute('aria-disabled') === 'true'
    const onclick = ({ currentTarget }) => (disabled(currentTarget) ? tell(sentence(currentTarget.title)) : action())
    return h('button', { type: 'button', onclick }, label)
  }

  function sentence(text) {
    const whole = text.charAt(0).toUpperCase() + text.slice(1)
    return /[.!?。]$/.test(whole) ? whole : say('stop', { sentence: whole })
  }

  /** A message about an action, or nothing. */
  function tell(text, failed = false) {
    message.hidden = !text
    message.textContent = text
    message.classList.toggle('ltx2-failed', failed)
  }

  return { element, show, tell }
}

/** Not the property "disabled": that would take the keyboard's focus away in the middle of a run. */
function disable(button, why, what) {
  button.setAttribute('aria-disabled', String(why !== ''))
  button.title = why || what
}

function placeRow({ name, device, host, note }, onGpu, hear) {
  const title = h('th', { scope: 'row' }, hear(name))
  if (note) title.append(h('small', {}, hear(note)))
  const cells = [device, host].slice(0, onGpu ? 2 : 1).map((bytes) => h('td', {}, bytes ? size(bytes) : '–'))
  return h('tr', {}, title, ...cells)
}

/**
 * Every run as a stacked bar, the latest with what its stages took. Each fills the width: on one scale, the first run,
 * which loads the models, would leave the others too short to be read.
 */
function runRows(runs, { language, say, hear }) {
  const colours = new Map(STAGES.map((name, index) => [name, index]))
  const colour = (name) => {
    if (!colours.has(name)) colours.set(name, colours.size % COLOURS)
    return `ltx2-stage-${colours.get(name)}`
  }
  const totals = runs.map((run) => run.stages.reduce((sum, stage) => sum + stage.ms, 0))
  return runs.map((run, index) => {
    const stages = byName(run.stages).map((stage) => ({ ...stage, label: hear(stage.label) }))
    const title = [run.recipe, run.mode].filter(Boolean).join(', ')
    const words = stages
      .map((stage) => `${stage.label} ${duration(stage.ms)}`)
      .reduce((rest, last) => say('list', { rest, last }))
    const bar = h('div', { className: 'ltx2-bar ltx2-stacked', role: 'img', 'aria-label': say('pair', { name: duration(totals[index]), value: words }) })
    for (const stage of stages) {
      const segment = h('span', { className: colour(stage.name), title: say('pair', { name: stage.label, value: duration(stage.ms) }) })
      segment.style.flexGrow = String(stage.ms)
      bar.append(segment)
    }
    const row = h(
      'div',
      { className: 'ltx2-run' },
      h(
        'div',
        { className: 'ltx2-line' },
        h('span', {}, h('span', { className: 'ltx2-faint' }, clock(run.ended, language)), ` ${title}`),
        h('span', { className: 'ltx2-figures' }, duration(totals[index]))
      ),
      bar
    )
    if (index === 0) row.append(legend(stages, colour, say))
    return row
  })
}

function legend(stages, colour, say) {
  return h(
    'ul',
    { className: 'ltx2-legend' },
    ...stages.map((stage) =>
      h(
        'li',
        {},
        h('i', { className: colour(stage.name), 'aria-hidden': 'true' }),
        h('span', {}, stage.label),
        h('span', { className: 'ltx2-figures' }, duration(stage.ms)),
        h('span', { className: 'ltx2-figures ltx2-faint', title: say('peak') }, size(stage.peak_bytes))
      )
    )
  )
}

/** Stages of one name as one: a prompt and its negative may have been encoded apart. */
function byName(stages) {
  const found = new Map()
  for (const stage of stages) {
    const same = found.get(stage.name)
    if (same) {
      same.ms += stage.ms
      same.peak_bytes = Math.max(same.peak_bytes, stage.peak_bytes)
    } else found.set(stage.name, { ...stage })
  }
  return [...found.values()]
}
