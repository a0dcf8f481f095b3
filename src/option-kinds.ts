// What an option's value can be: how it is read from a flag, a variable, a config file or a caller, and how a refusal is worded.
import { resolve } from 'node:path'
import * as z from 'zod/mini'
import { isLoopback } from './base/addresses.js'
import { codes } from './base/errors.js'
import { parseSize, parseTime } from './base/units.js'

/** A kind of value: `schema` turns what was given into what is used, or says what is allowed. */
export interface Kind<Output, Input> {
  /** Stands for the value in the help. Absent: a switch. */
  placeholder?: string
  schema: z.ZodMiniType<Output, Input>
}

const shown = (given: unknown) =>
  typeof given === 'string' ? JSON.stringify(given) : (JSON.stringify(given) ?? String(given))

/** `read` throws when it does not like what it was given; `refuse` words that. */
function reading<Output, Input>(read: (given: Input) => Output, refuse: (error: unknown) => string) {
  const schema = z.transform((given: Input, { issues }): Output => {
    try {
      return read(given)
    } catch (error) {
      issues.push({ code: 'custom', message: `got ${shown(given)}; ${refuse(error)}`, input: given })
      return z.NEVER
    }
  })
  return z.pipe(z.custom<Input>(), schema)
}

/** Whatever `read` throws, the message is what was given and what is allowed. */
const kind = <Output, Input>(
  placeholder: string | undefined,
  allowed: string,
  read: (given: Input) => Output,
): Kind<Output, Input> => ({ placeholder, schema: reading(read, () => `allowed: ${allowed}`) })

/** For `read` functions: the value, if it is one. */
function only<T>(value: T, ok: boolean): T {
  if (!ok) throw new RangeError('not allowed')
  return value
}

const between = (value: number, min: number, max: number) => only(value, value >= min && value <= max)

/** Bytes: a number, or text such as 256M. */
export const size = ({ min, max, like }: { min: string; max: string; like: string }) =>
  kind<number, string | number>(
    'SIZE',
    `a size from ${min} to ${max}, such as ${like} (K, M, G, T are powers of 1024)`,
    given => between(Math.round(typeof given === 'number' ? given : parseSize(given)), parseSize(min), parseSize(max)),
  )

/** Milliseconds: a number of them, or text such as 30s. */
export const time = ({ min, max, like }: { min: string; max: string; like: string }) =>
  kind<number, string | number>('TIME', `a time from ${min} to ${max}, such as ${like} (units: ms, s, m, h)`, given =>
    between(typeof given === 'number' ? given : parseTime(given), parseTime(min), parseTime(max)),
  )

const integer = (given: string | number, pattern: RegExp, base: number) =>
  typeof given === 'number'
    ? only(given, Number.isInteger(given))
    : only(Number.parseInt(given, base), pattern.test(given))

export const count = ({ min, max }: { min: number; max: number }) =>
  kind<number, string | number>('N', `a whole number from ${min} to ${max}`, given =>
    between(integer(given, /^\d+$/, 10), min, max),
  )

/** Permission bits: octal text, or a number. */
export const octal = () =>
  kind<number, string | number>('OCTAL', 'octal permission bits from 000 to 777, such as 022', given =>
    between(integer(given, /^[0-7]{1,4}$/, 8), 0, 0o777),
  )

const words: Record<string, boolean> = {
  '1': true,
  true: true,
  yes: true,
  on: true,
  '0': false,
  false: false,
  no: false,
  off: false,
}

/** On or off. */
export const toggle = () =>
  kind<boolean, string | boolean>(undefined, 'yes or no', given => {
    const value = typeof given === 'boolean' ? given : words[String(given).toLowerCase()]
    return only(value, typeof value === 'boolean')
  })

export const choice = <const T extends string>(...values: T[]) =>
  kind<T, T>(values.join('|'), values.join(', '), given => only(given, values.includes(given)))

const absolute = (given: string) =>
  resolve(only(given, typeof given === 'string' && given !== '' && !given.includes('\0')))

/** A path; made absolute at once, since a daemon works in another directory. */
export const path = (placeholder: 'DIR' | 'FILE') => kind<string, string>(placeholder, 'a path', absolute)

/** Some words, or else a file. */
export const wordOrFile = <const T extends string>(...values: T[]) =>
  kind<T | { file: string }, T | (string & {}) | { file: string }>(
    [...values, 'FILE'].join('|'),
    `${values.join(', ')} or a file`,
    given => {
      if (typeof given !== 'string') return { file: absolute(given.file) }
      return (values as string[]).includes(given) ? (given as T) : { file: absolute(given) }
    },
  )

/** Several of them: the flag repeated, an array, or text separated by commas. */
export const list = (placeholder: string, allowed: string) =>
  kind<string[], string | string[]>(placeholder, allowed, given => {
    const parts = (Array.isArray(given) ? given : [given]).flatMap(each =>
      only(each, typeof each === 'string').split(','),
    )
    return parts.map(part => part.trim()).filter(part => part !== '')
  })

export interface Listen {
  host: string
  port: number
}

/** PORT, HOST:PORT or [IPV6]:PORT on this machine itself. */
export const loopback = () =>
  kind<Listen, string | number>(
    'ADDR',
    'a port, or a loopback address with one, such as 9464, 127.0.0.1:9464 or [::1]:9464',
    given => {
      const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]:|([^:[\]]+):)?(\d{1,5})$/.exec(String(given)) ?? []
      const host = bracketed ?? plain ?? '127.0.0.1'
      return only({ host, port: Number(digits) }, isLoopback(host) && Number(digits) <= 65_535)
    },
  )

/** Where a server listens. */
export type Address = { path: string } | Listen

/** unix:PATH, PORT, HOST:PORT or [IPV6]:PORT; of this machine alone, unless a host is named. Port 0: any that is free. */
export const address = () =>
  kind<Address, string | number>(
    'ADDR',
    'unix:PATH, a port, or an address with one, such as unix:/run/disk.sock, 10809, 0.0.0.0:10809 or [::1]:10809',
    given => {
      const text = String(given)
      if (text.startsWith('unix:')) return { path: absolute(text.slice('unix:'.length)) }
      const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]:|([^:[\]]+):)?(\d{1,5})$/.exec(text) ?? []
      return only({ host: bracketed ?? plain ?? '127.0.0.1', port: Number(digits) }, Number(digits) <= 65_535)
    },
  )

const complaint = (error: unknown) =>
  error instanceof Error ? error.message.replace(`${codes.USAGE}: `, '') : String(error)

/** Text that some other function understands; its complaint is the message. */
export const parsed = <Output>(placeholder: string, read: (given: string) => Output): Kind<Output, string> => ({
  placeholder,
  schema: reading(read, complaint),
})
