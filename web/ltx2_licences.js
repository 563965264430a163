/** The button of LTX-2 Download: consent is kept by the server for this user, and no workflow can carry it. */
import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const WORDS = {
  en: {
    button: 'Accept the licences…',
    ask: 'I have read and accept, for this machine:',
    where: 'on the page of',
    done: 'Accepted. Turn accept_licences on and run the node.'
  },
  zh: {
    button: '接受许可…',
    ask: '我已阅读并在本机接受：',
    where: '页面：',
    done: '已接受。请打开“接受许可”并运行该节点。'
  }
}

function words() {
  const locale = app.ui?.settings?.getSettingValue?.('Comfy.Locale')
  return Object.hasOwn(WORDS, locale) ? WORDS[locale] : WORDS.en
}

async function ask() {
  const { ask, where, done } = words()
  const { licences } = await (await api.fetchApi('/ltx2/licences')).json()
  const lines = Object.entries(licences).map(([name, pages]) => `- ${name}, ${where} ${pages.join(', ')}`)
  if (!window.confirm([ask, ...lines].join('\n'))) return
  const answer = await api.fetchApi('/ltx2/licences', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ accept: true })
  })
  window.alert(answer.ok ? done : (await answer.json()).error)
}

app.registerExtension({
  name: 'ltx2.two-stage.licences',
  nodeCreated(node) {
    if (node.comfyClass !== 'LTX2TwoStageDownload') return
    const button = node.addWidget('button', words().button, null, ask, { serialize: false })
    button.serialize = false
  }
})
