// What the library has to say: records on a diagnostics channel, free when nobody listens. The command line listens (src/log.ts).
import { channel } from 'node:diagnostics_channel'

/** From the least to the most urgent. */
export const levels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const
export type Level = (typeof levels)[number]

export interface LogRecord {
  atMs: number
  level: Level
  /** The folder or file that speaks: 'cache', 'fs', 'control'... */
  part: string
  /** One line, lower-case, without a full stop. */
  message: string
  /** Must survive JSON.stringify; an `error` field may be an Error. */
  fields: Record<string, unknown>
}

const records = channel('pageferry:log')

export type Logger = Record<Level, (message: string, fields?: Record<string, unknown>) => void>

/** A logger for one part of the program; make it once, at module level. */
export function logger(part: string): Logger {
  const at =
    (level: Level) =>
    (message: string, fields: Record<string, unknown> = {}) => {
      if (!records.hasSubscribers) return
      records.publish({ atMs: Date.now(), level, part, message, fields } satisfies LogRecord)
    }
  return Object.fromEntries(levels.map(level => [level, at(level)])) as Logger
}

/** Says again what another thread said. */
export const relay = (record: LogRecord): void => records.publish(record)

/** Calls `listener` with every record from now on; returns how to stop. */
export function onLog(listener: (record: LogRecord) => void): () => void {
  const heard = (message: unknown) => listener(message as LogRecord)
  records.subscribe(heard)
  return () => void records.unsubscribe(heard)
}
