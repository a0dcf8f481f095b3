// How the kernel caches for one mount: its backing device info (Documentation/ABI/testing/sysfs-class-bdi).

import { writeFile } from 'node:fs/promises'
import { toFerryError } from '../base/errors.js'
import type { Device } from './files.js'

export interface BdiSettings {
  /** Largest buffered READ and how far ahead the kernel reads, in KiB. */
  readAheadKb?: number
  /** Dirty bytes it may hold back from us. */
  maxBytes?: number
  /** Count that limit at once, not only when the whole system has much to write. */
  strictLimit?: boolean
  /** Per cent of the system's dirty limit that this mount may use (1 for FUSE). */
  maxRatio?: number
}

const files: Record<keyof BdiSettings, string> = {
  strictLimit: 'strict_limit',
  maxRatio: 'max_ratio',
  maxBytes: 'max_bytes',
  readAheadKb: 'read_ahead_kb',
}

/**
 * Sets what is given; call it after INIT was answered, which resets the readahead. Needs root, and Linux 6.2 for `maxBytes` and
 * `strictLimit`.
 * @returns the settings that were refused, each with the reason: the mount works without them, only slower or less bounded
 */
export async function tuneBdi({ major, minor }: Device, settings: BdiSettings): Promise<string[]> {
  const refused: string[] = []
  for (const key of Object.keys(files) as (keyof BdiSettings)[]) {
    const value = settings[key]
    if (value === undefined) continue
    try {
      await writeFile(`/sys/class/bdi/${major}:${minor}/${files[key]}`, `${Number(value)}`)
    } catch (error) {
      refused.push(`${files[key]}: ${toFerryError(error).message}`)
    }
  }
  return refused
}
