// Where the records of the library go in the program: lines for people, JSON for machines.
import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs'
import { pino } from 'pino'
import { FerryError } from './base/errors.js'
import { type Level, type LogRecord, levels, onLog } from './base/log.js'

export interface LogOptions {
  /** Nothing less urgent is said. */
  level: Level
  /** Takes lines; absent: nobody reads them. */
  line?: (text: string) => void
  /** Takes JSON lines. Put aside as FILE.1 when it has grown to `fileBytesMax`. */
  file?: string
  fileBytesMax?: number
}

const FILE_BYTES_MAX = 16 * 1024 * 1024

/** Prints and writes what is logged until `close`. USAGE when the file cannot be opened. */
export function startLog({ level, line, file, fileBytesMax = FILE_BYTES_MAX }: LogOptions): { close(): void } {
  const least = levels.indexOf(level)
  const target = file === undefined ? undefined : appendTo(file, fileBytesMax)
  const json = target && pino({ level: 'trace', base: { pid: process.pid } }, target)
  const stop = onLog(record => {
    if (levels.indexOf(record.level) < least) return
    line?.(lineOf(record))
    const { error, ...fields } = record.fields
    json?.[record.level](
      { part: record.part, ...fields, ...(error === undefined ? {} : { err: error }) },
      record.message,
    )
  })
  return {
    close: () => {
      stop()
      target?.close()
    },
  }
}

/** One line of a record: `warning: the lease was lost (epoch 4)`. */
export function lineOf({ level, message, fields }: LogRecord): string {
  const { error, ...others } = fields
  const kind = level === 'info' ? '' : level === 'warn' ? 'warning: ' : level === 'fatal' ? 'error: ' : `${level}: `
  const why = error === undefined ? '' : `: ${error instanceof Error ? error.message : String(error)}`
  const rest = Object.entries(others).map(
    ([name, value]) => `${name} ${typeof value === 'string' ? value : JSON.stringify(value)}`,
  )
  return `${kind}${message}${why}${rest.length > 0 ? ` (${rest.join(', ')})` : ''}`.replaceAll('\n', ' ')
}

/** A file that never grows beyond twice its bound. Written at once: the last words of a process count most. */
function appendTo(file: string, bytesMax: number) {
  const open = () => {
    try {
      return openSync(file, 'a', 0o600)
    } catch (error) {
      throw new FerryError('USAGE', {
        cause: error,
        detail: `--log-file: ${file} cannot be written (${(error as NodeJS.ErrnoException).code})`,
      })
    }
  }
  let fd = open()
  let bytes = fstatSync(fd).size
  return {
    write(text: string) {
      try {
        bytes += writeSync(fd, text)
        if (bytes < bytesMax) return
        renameSync(file, `${file}.1`)
        closeSync(fd)
        fd = open()
        bytes = 0
      } catch {
        // A full disk must not end the mount for want of a log line.
      }
    },
    close: () => closeSync(fd),
  }
}
