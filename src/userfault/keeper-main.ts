// A process that does nothing but keep the userfaultfds of a server of memory: should that end without a farewell, no page of anybody's
// memory becomes zeros. Whoever needs one waits until another server goes on with them.  keeper-main.js SOCKET
import { closeSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { receive, takeDescriptor } from '../linux/descriptors.js'
import { errno, errnoOf } from '../linux/libc.js'
import { listen } from '../linux/listen.js'
import { Intake, sendMessage } from '../linux/messages.js'
import { type Watcher, watchDescriptor } from '../linux/poll.js'
import { type KeeperMessage, keeperPath } from './keeper-messages.js'
import { Spaces } from './spaces.js'

/** For its server to come. */
const START_MS = 10_000

interface Kept {
  id: number
  size: number
  uffd: number
  connection: number
  watcher: Watcher
  spaces: Spaces
}

const path = keeperPath(process.argv[2])
const kept = new Map<number, Kept>()
let memory: number | null = null
let server: { fd: number; watcher: Watcher; intake: Intake<KeeperMessage> } | null = null

const closeWatched = (watcher: Watcher, ...fds: number[]) =>
  watcher.close().then(() => {
    for (const fd of fds) closeSync(fd)
  })

function drop(id: number): void {
  const each = kept.get(id)
  if (!each) return
  kept.delete(id)
  void closeWatched(each.watcher, each.uffd, each.connection)
  rest()
}

/** Without a server, and with nothing to keep, it is not needed. */
function rest(): void {
  if (server || kept.size > 0) return
  rmSync(path, { force: true })
  process.exit(0)
}

/** The process has ended: it says nothing else any more. While there is a server, that one tells. */
function heard(id: number, connection: number): void {
  if (server) return
  try {
    if (receive(connection, 1, 0).bytes.length > 0) return
  } catch (error) {
    if (errnoOf(error) === errno.EAGAIN) return
  }
  drop(id)
}

function told(message: KeeperMessage, descriptors: number[]): void {
  switch (message.op) {
    case 'keep': {
      const { id, size, mappings } = message
      const [uffd, connection] = descriptors
      const watcher = watchDescriptor(connection, () => heard(id, connection))
      kept.set(id, { id, size, uffd, connection, watcher, spaces: new Spaces(mappings) })
      return
    }
    case 'memory':
      memory = descriptors[0]
      return
    case 'pages':
      kept.get(message.id)?.spaces.know(message.mapping, message)
      return
    case 'put':
      kept.get(message.id)?.spaces.put(message.start, message.end)
      return
    case 'removed':
      kept.get(message.id)?.spaces.forget(message.start, message.end, true)
      return
    case 'unmapped':
      kept.get(message.id)?.spaces.unmap(message.start, message.end)
      return
    case 'moved':
      kept.get(message.id)?.spaces.move(message.from, message.to, message.length)
      return
    case 'gone':
      drop(message.id)
  }
}

/** False: it is gone, or talks nonsense. */
function hear(fd: number, intake: Intake<KeeperMessage>): boolean {
  try {
    return intake.read(fd, told)
  } catch {
    return false
  }
}

/** A new server takes everything over; the one before it, if it is still there, is not listened to any more. */
function serve(fd: number): void {
  if (server) leave()
  clearTimeout(patience)
  const intake = new Intake<KeeperMessage>()
  const watcher = watchDescriptor(fd, () => {
    if (!hear(fd, intake) && server?.fd === fd) alone()
  })
  server = { fd, watcher, intake }
  for (const { watcher } of kept.values()) watcher.stop()
  if (memory !== null) sendMessage<KeeperMessage>(fd, { op: 'memory', descriptors: 1 }, [memory])
  for (const { id, size, uffd, connection, spaces } of kept.values()) {
    sendMessage<KeeperMessage>(fd, { op: 'keep', id, size, mappings: spaces.mappings, descriptors: 2 }, [
      uffd,
      connection,
    ])
    for (const [mapping, pages] of spaces.known().entries())
      for (const each of pages) sendMessage<KeeperMessage>(fd, { op: 'pages', id, mapping, ...each, descriptors: 0 })
  }
  sendMessage<KeeperMessage>(fd, { op: 'ready', descriptors: 0 })
  watcher.start()
}

function leave(): void {
  const { fd, watcher, intake } = server!
  // What it has said last may still be on its way.
  hear(fd, intake)
  server = null
  intake.close()
  void closeWatched(watcher, fd)
}

/** From now on it is to be found out here who ends. */
function alone(): void {
  leave()
  for (const { watcher } of kept.values()) watcher.start()
  rest()
}

// Whatever ends its server, a terminal or a user, is not meant for it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
const listener = createServer({ pauseOnConnect: true }, socket => serve(takeDescriptor(socket)))
const patience = setTimeout(rest, START_MS)
await listen(listener, { path })
console.log('ready')
