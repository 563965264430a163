/** Numbers in words, as everywhere in this pack: sizes in GB with one decimal, times in the unit that reads best. */

/** @param {number} bytes */
export function size(bytes) {
  if (bytes >= 5e7) return `${(bytes / 1e9).toFixed(1)} GB`
  return bytes > 0 ? `${(bytes / 1e6).toFixed(1)} MB` : '0 GB'
}

/** @param {number} ms */
export function duration(ms) {
  if (ms < 999.5) return `${Math.round(ms)} ms`
  return ms < 59_950 ? `${(ms / 1000).toFixed(1)} s` : roughly(ms / 1000)
}

/** An estimate: whole seconds, one at least. */
export function roughly(seconds) {
  const whole = Math.max(1, Math.round(seconds))
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
}

/** The time of day of a moment in seconds since 1970, in a language, and in the reader's own form of it. */
export function clock(seconds, language) {
  const own = navigator.languages.find((tag) => tag.split('-')[0] === language)
  return new Date(seconds * 1000).toLocaleTimeString(own ?? language, { hour: '2-digit', minute: '2-digit' })
}

/** The last part of a path of either kind. */
export function fileName(path) {
  return path.split(/[\\/]/).pop() ?? path
}
