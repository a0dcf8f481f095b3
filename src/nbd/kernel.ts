// The kernel's own NBD client (drivers/block/nbd.c), told by generic netlink: devices that are connected to us, and connected again.
import { execFile } from 'node:child_process'
import { closeSync, readdirSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { deferred, sleep } from '../base/async.js'
import { Awake } from '../base/awake.js'
import { FerryError, isFerryError } from '../base/errors.js'
import type { RegionDoor } from '../cache/door.js'
import { systemError } from '../linux/libc.js'
import { genericNetlink, receiveDatagram, sendDatagram, socketPair, Uevents } from '../linux/netlink.js'
import {
  type Attribute,
  ControlAttribute,
  ControlCommand,
  genericMessage,
  MessageType,
  NBD_FAMILY,
  NbdAttribute,
  NbdCommand,
  numberIn,
  readMessages,
  socketsAttribute,
  stringAttribute,
  u32Attribute,
  u64Attribute,
  ueventIn,
} from '../wire/genetlink.js'
import { PAYLOAD_BYTES_MAX, TransmissionFlag } from '../wire/nbd.js'
import { Connection } from './connection.js'

/**
 * With several the kernel takes one for dead that has not answered for 30 s, and asks again by another: a remote may be slower than that.
 */
const CONNECTIONS = 1
/** Of a sector: images have partitions in these. */
const BLOCK_BYTES = 512
/** How long a device may take to be there, or gone. */
const SETTLE_MS_MAX = 10_000
/** Events may be lost. */
const LOOK_MS = 250
const MODPROBE_MS_MAX = 10_000

/** One family of generic netlink. Requests are made one after the other. */
class Family {
  readonly #fd: number
  readonly #type: number
  #sequence = 1

  private constructor(fd: number, type: number) {
    this.#fd = fd
    this.#type = type
  }

  /** null: the kernel has none of that name. @throws NOT_PERMITTED, IO */
  static async open(name: string): Promise<Family | null> {
    const fd = genericNetlink()
    try {
      const control = new Family(fd, MessageType.CONTROL)
      const named = [stringAttribute(ControlAttribute.FAMILY_NAME, name)]
      const found = await control.ask(ControlCommand.GETFAMILY, named)
      return new Family(fd, numberIn(found!, ControlAttribute.FAMILY_ID))
    } catch (error) {
      closeSync(fd)
      if (isFerryError(error, 'NOT_FOUND')) return null
      throw error
    }
  }

  /** The attributes of the answer; null: it has none, the kernel has done it. @throws what the kernel says, PROTOCOL */
  async ask(command: number, attributes: Attribute[]): Promise<Map<number, Uint8Array> | null> {
    const sequence = this.#sequence++
    await sendDatagram(this.#fd, genericMessage({ type: this.#type, sequence, command, attributes }))
    let answer: Map<number, Uint8Array> | null = null
    for (;;)
      for (const received of readMessages(await receiveDatagram(this.#fd))) {
        if (received.sequence !== sequence) continue
        if (!('outcome' in received)) answer = received.attributes
        else if (received.outcome === 0) return answer
        else throw systemError(received.outcome, 'netlink', NBD_FAMILY)
      }
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/** null: this kernel has no NBD. @throws NOT_PERMITTED */
async function nbdFamily(): Promise<Family | null> {
  const family = await Family.open(NBD_FAMILY)
  if (family) return family
  await promisify(execFile)('modprobe', ['nbd'], { timeout: MODPROBE_MS_MAX }).catch(() => {})
  return Family.open(NBD_FAMILY)
}

export interface KernelNbdOptions {
  /** Of /dev/nbdN. Default: the one that waits for `identity`, else any that is free. */
  index?: number
  /** Says whose device it is: what was left by a process that was killed goes on with the next one that says the same. */
  identity: string
  /** How long what uses the device waits for the next process when this one has gone. */
  deadConnectionMs: number
}

/** A device of the kernel's that is connected to a region. */
export interface KernelNbd {
  index: number
  /** It was there, and waited. */
  isAgain: boolean
  /** The kernel lets go of the device, after what is on its way. Nobody may use it any more. */
  disconnect(): Promise<void>
}

/**
 * Makes a region /dev/nbdN. null: this kernel has no NBD.
 * @throws NOT_PERMITTED, BUSY: the device is somebody else's, NOT_FOUND: there is no such device
 */
export async function connectKernel(region: RegionDoor, options: KernelNbdOptions): Promise<KernelNbd | null> {
  const family = await nbdFamily()
  if (!family) return null
  const awake = new Awake()
  const connections: Connection[] = []
  const theirs: number[] = []
  try {
    for (let n = 0; n < CONNECTIONS; n++) {
      const [ours, kernels] = socketPair()
      theirs.push(kernels)
      connections.push(Connection.ofDescriptor(ours, { awake, region, details: detailsOf(region) }))
    }
    const waiting = waitingFor(options)
    const index =
      waiting === null
        ? await connect(family, region, theirs, options)
        : await reconnect(family, theirs, waiting, options.identity)
    await settled(index, () => isConnected(index))
    return {
      index,
      isAgain: waiting !== null,
      async disconnect() {
        await family.ask(NbdCommand.DISCONNECT, [u32Attribute(NbdAttribute.INDEX, index)])
        await settled(index, () => !isConnected(index))
        for (const connection of connections) connection.destroy()
        await Promise.all(connections.map(({ ended }) => ended))
        family.close()
      },
    }
  } catch (error) {
    for (const connection of connections) connection.destroy()
    family.close()
    throw error
  } finally {
    // The kernel has names of its own for them.
    for (const fd of theirs) closeSync(fd)
  }
}

/** Found without a race: without a number, the kernel takes one that is free, or makes one. */
async function connect(
  family: Family,
  region: RegionDoor,
  fds: number[],
  { index, identity, deadConnectionMs }: KernelNbdOptions,
): Promise<number> {
  const answer = await family
    .ask(NbdCommand.CONNECT, [
      ...(index === undefined ? [] : [u32Attribute(NbdAttribute.INDEX, index)]),
      u64Attribute(NbdAttribute.SIZE_BYTES, region.size - (region.size % BLOCK_BYTES)),
      u64Attribute(NbdAttribute.BLOCK_SIZE_BYTES, BLOCK_BYTES),
      u64Attribute(NbdAttribute.SERVER_FLAGS, detailsOf(region).flags),
      u64Attribute(NbdAttribute.DEAD_CONN_TIMEOUT, Math.ceil(deadConnectionMs / 1000)),
      stringAttribute(NbdAttribute.BACKEND_IDENTIFIER, identity),
      socketsAttribute(fds),
    ])
    .catch(error => {
      if (isFerryError(error, 'BUSY'))
        throw new FerryError('BUSY', { cause: error, detail: `/dev/nbd${index} is connected already` })
      throw error
    })
  return numberIn(answer ?? new Map(), NbdAttribute.INDEX)
}

async function reconnect(family: Family, fds: number[], index: number, identity: string): Promise<number> {
  await family.ask(NbdCommand.RECONFIGURE, [
    u32Attribute(NbdAttribute.INDEX, index),
    stringAttribute(NbdAttribute.BACKEND_IDENTIFIER, identity),
    socketsAttribute(fds),
  ])
  return index
}

/** A device that a process of the same identity has left behind. */
function waitingFor({ index, identity }: KernelNbdOptions): number | null {
  const all = index === undefined ? indices() : [index]
  return all.find(one => isConnected(one) && sysfs(one, 'backend') === identity) ?? null
}

const indices = (): number[] =>
  readdirSync('/sys/block').flatMap(name => (/^nbd\d+$/.test(name) ? [Number(name.slice('nbd'.length))] : []))

function sysfs(index: number, file: string): string | null {
  try {
    return readFileSync(`/sys/block/nbd${index}/${file}`, 'latin1').trim()
  } catch {
    return null
  }
}

/** The file is there as long as a connection is. */
const isConnected = (index: number) => sysfs(index, 'pid') !== null && Number(sysfs(index, 'size')) > 0

/** Until the kernel says that something of this device has changed, and it is as it should be. */
async function settled(index: number, isThere: () => boolean): Promise<void> {
  let changed = deferred()
  const events = new Uevents(datagram => {
    if (ueventIn(datagram)?.path.endsWith(`/nbd${index}`)) changed.resolve()
  })
  try {
    const giveUpMs = performance.now() + SETTLE_MS_MAX
    while (!isThere()) {
      if (performance.now() > giveUpMs)
        throw new FerryError('IO', { detail: `/dev/nbd${index} is not ready, ${SETTLE_MS_MAX / 1000} s later` })
      await Promise.race([changed.promise, sleep(LOOK_MS)])
      changed = deferred()
    }
  } finally {
    await events.close()
  }
}

function detailsOf(region: RegionDoor) {
  const { HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN } = TransmissionFlag
  const changes = SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
  return {
    name: '',
    size: region.size,
    flags: HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | (region.readOnly ? READ_ONLY : changes),
    blockSize: { minimum: 1, preferred: BLOCK_BYTES, maximum: PAYLOAD_BYTES_MAX },
  }
}
