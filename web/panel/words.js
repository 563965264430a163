/** The panel's words in the language of ComfyUI's page, and in English where it has none of that language. */
import { words as en } from './words/en.js'
import { server as zhServer, words as zh } from './words/zh.js'

/** By the values of the setting Comfy.Locale. */
const LANGUAGES = { en: { words: en, server: {} }, zh: { words: zh, server: zhServer } }

/** @param {string} locale */
export function speak(locale) {
  const language = Object.hasOwn(LANGUAGES, locale) ? locale : 'en'
  const { words, server } = LANGUAGES[language]

  /** The text of a key. */
  function say(key, values = {}) {
    return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name])
  }

  /**
   * A text of the server, which speaks English. What is not known here stays as it is: the reason for a mode, with the
   * machine's figures in it, and the words of an error.
   */
  function hear(text) {
    return Object.hasOwn(server, text) ? server[text] : text
  }

  return { language, say, hear }
}

/** Two sentences in a row: those of Chinese have no space between them. */
export function together(first, second) {
  return first.endsWith('。') ? first + second : `${first} ${second}`
}
