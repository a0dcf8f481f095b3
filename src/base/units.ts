// Sizes and times as people write them.
import { FerryError } from './errors.js'

const KIB = 1024
const sizeUnits: Record<string, number> = { '': 1, K: KIB, M: KIB ** 2, G: KIB ** 3, T: KIB ** 4 }
const timeUnits: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

const refuse = (name: string | undefined, text: string, allowed: string): never => {
  throw new FerryError('USAGE', { detail: `${name ? `${name}: ` : ''}${JSON.stringify(text)} is not ${allowed}` })
}

/**
 * Bytes of '256M', '1.5G', '4096', '64KiB': K, M, G and T are powers of 1024. USAGE for anything else, or beyond 2^53.
 * @param name what is being set, for the message
 */
export function parseSize(text: string, name?: string): number {
  const allowed = 'a size: a number, or one with K, M, G or T (powers of 1024), like 256M'
  const [, digits, unit] = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?$/i.exec(text.trim()) ?? refuse(name, text, allowed)
  const bytes = Math.round(Number(digits) * sizeUnits[unit.toUpperCase()])
  return Number.isSafeInteger(bytes) ? bytes : refuse(name, text, 'a size below 8192T')
}

/** Milliseconds of '500ms', '30s', '2m', '1.5h', '0'. USAGE for anything else: a bare number does not say what it counts. */
export function parseTime(text: string, name?: string): number {
  const allowed = 'a time: a number with ms, s, m or h, like 30s'
  if (text.trim() === '0') return 0
  const [, digits, unit] = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h)$/.exec(text.trim()) ?? refuse(name, text, allowed)
  const ms = Number(digits) * timeUnits[unit]
  return Number.isSafeInteger(Math.ceil(ms)) ? ms : refuse(name, text, 'a time that can be counted in ms')
}

const shortNumber = (value: number) => (value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))))

/** '1.5 GiB', '512 B': three digits. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let rank = 0
  // 1023.6 would be shown as 1024: take the next unit already there.
  while (Math.abs(bytes) >= 1023.5 && rank < units.length - 1) {
    bytes /= KIB
    rank++
  }
  return `${bytes < 0 ? '-' : ''}${shortNumber(Math.abs(bytes))} ${units[rank]}`
}

/** '120ms', '4.2s', '3m 20s', '2h 5m'. */
export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${shortNumber(ms)}ms`
  if (ms < 59_950) return `${shortNumber(ms / 1000)}s`
  const seconds = Math.round(ms / 1000)
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${seconds % 60 ? ` ${seconds % 60}s` : ''}`
  const minutes = Math.round(ms / 60_000)
  return `${Math.floor(minutes / 60)}h${minutes % 60 ? ` ${minutes % 60}m` : ''}`
}
