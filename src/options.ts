// Every option in one table: name, what it may be, default, help. Flags, environment variables, config keys and the library's
// camelCase options are all read from it.
import { readFileSync } from 'node:fs'
import { totalmem } from 'node:os'
import { parse as parseToml } from 'smol-toml'
import * as z from 'zod/mini'
import { isLoopback } from './base/addresses.js'
import { FerryError } from './base/errors.js'
import { levels } from './base/log.js'
import { formatBytes, parseSize } from './base/units.js'
import type { PullOrder } from './cache/pull-order.js'
import {
  address,
  choice,
  count,
  type Kind,
  list,
  loopback,
  octal,
  parsed,
  path,
  size,
  time,
  toggle,
  wordOrFile,
} from './option-kinds.js'
import { parseSimulation } from './remote/simulate.js'

function parsePullOrder(given: string): Exclude<PullOrder, (chunk: number) => number> {
  if (given === 'ascending' || given === 'descending') return given
  const [, stride] = /^stride:(.+)$/.exec(given) ?? []
  if (stride === undefined) throw new FerryError('USAGE', { detail: 'allowed: ascending, descending, or stride:SIZE' })
  return { strideBytes: parseSize(stride, 'a stride') }
}

type Group = 'cache' | 'remote' | 'mount' | 'server' | 'process'

/** One option. `fallback` is its default, as a user would write it. */
interface Row<Schema extends z.ZodMiniType = z.ZodMiniType> {
  group: Group
  placeholder: string | undefined
  help: string
  fallback: unknown
  schema: Schema
}

const optional = <Output, Input>(
  group: Group,
  { placeholder, schema }: Kind<Output, Input>,
  help: string,
): Row<z.ZodMiniOptional<z.ZodMiniType<Output, Input>>> => ({
  group,
  placeholder,
  help,
  fallback: undefined,
  schema: z.optional(schema),
})

const defaulted = <Output, Input>(
  group: Group,
  { placeholder, schema }: Kind<Output, Input>,
  fallback: Input,
  help: string,
): Row<z.ZodMiniPrefault<z.ZodMiniType<Output, Input>>> => ({
  group,
  placeholder,
  help,
  fallback,
  schema: z.prefault(schema, fallback as z.core.util.NoUndefined<Input>),
})

const needed = <Output, Input>(
  group: Group,
  { placeholder, schema }: Kind<Output, Input>,
  help: string,
): Row<z.ZodMiniType<Output, Input>> => ({ group, placeholder, help, fallback: undefined, schema })

const anySize = (like: string) => size({ min: '64K', max: '4096T', like })

/** What `mountTree` takes. */
const mountTable = {
  cacheDir: optional(
    'cache',
    path('DIR'),
    'where cached and unsent bytes live (default: one per remote, under $XDG_CACHE_HOME/pageferry)',
  ),
  cacheSize: defaulted(
    'cache',
    size({ min: '16M', max: '4096T', like: '10G' }),
    '10G',
    'local disk for cached and unsent bytes, at most',
  ),
  cacheMinFree: optional(
    'cache',
    size({ min: '0', max: '4096T', like: '1G' }),
    "leave this much of the cache's disk free (default: 1G, or a tenth of a small disk)",
  ),
  memory: defaulted(
    'cache',
    size({ min: '16M', max: '1T', like: '256M' }),
    '256M',
    'buffers of fetches and pushes in flight, at most',
  ),
  dirtyLimit: optional(
    'cache',
    size({ min: '1M', max: '4096T', like: '1G' }),
    'bytes not yet at the remote, at most; then writers wait (default: 1G, or half of a small --cache-size)',
  ),
  whenFull: defaulted(
    'cache',
    choice('wait', 'error'),
    'wait',
    'at the dirty limit, let writers wait, or refuse with ENOSPC',
  ),
  fsync: defaulted(
    'cache',
    choice('local', 'remote'),
    'local',
    'fsync(2) returns when the change is durable here, or at the remote',
  ),
  flushInterval: defaulted(
    'cache',
    time({ min: '10ms', max: '24h', like: '2s' }),
    '2s',
    'send changes at the latest this long after the first one',
  ),
  maxDelay: defaulted(
    'cache',
    time({ min: '0', max: '24h', like: '30s' }),
    '30s',
    'send a file that is open and only grows at the latest this long after its first change',
  ),
  pull: defaulted(
    'cache',
    choice('on-demand', 'all'),
    'on-demand',
    'fetch what is touched, or everything, in the background',
  ),
  pullOrder: defaulted(
    'cache',
    parsed('ORDER', parsePullOrder),
    'ascending',
    'of --pull all: ascending, descending, or stride:SIZE',
  ),
  pullWorkers: defaulted(
    'cache',
    count({ min: 0, max: 64 }),
    16,
    'requests at once for bytes that nobody waits for; 0: none',
  ),
  pushWorkers: defaulted(
    'cache',
    count({ min: 1, max: 64 }),
    8,
    'requests at once for changes on their way to the remote',
  ),
  prefetch: defaulted(
    'cache',
    wordOrFile('auto', 'off'),
    'auto',
    'read ahead of readers, not at all, or also as recorded in a file',
  ),
  record: optional('cache', path('FILE'), 'at unmount, write the order of first touches here, for --prefetch'),
  localOnly: defaulted(
    'cache',
    list('GLOB', 'names with * and ?, such as *-shm'),
    ['*-shm'],
    'names that exist here only and never travel; repeatable',
  ),

  fetchSize: defaulted(
    'remote',
    size({ min: '128K', max: '8M', like: '1M' }),
    '4M',
    'one request to the remote, at most',
  ),
  uploadLimit: optional('remote', anySize('10M'), 'bytes per second to the remote, at most'),
  downloadLimit: optional('remote', anySize('10M'), 'bytes per second from the remote, at most'),
  deadline: defaulted(
    'remote',
    time({ min: '10ms', max: '24h', like: '30s' }),
    '30s',
    'how long a read may wait for the remote before it fails',
  ),
  dirTtl: defaulted(
    'remote',
    time({ min: '0', max: '24h', like: '1s' }),
    '10s',
    'how long a listing of the remote is believed',
  ),
  lease: defaulted(
    'remote',
    time({ min: '1s', max: '1h', like: '30s' }),
    '30s',
    'the right to write is lost after this long without renewal',
  ),
  takeOver: defaulted('remote', toggle(), false, 'take the right to write from whoever has it'),
  shared: defaulted(
    'remote',
    toggle(),
    false,
    'write in turns with others who say so too, batch by batch, instead of alone',
  ),
  simulate: optional(
    'remote',
    parsed('SPEC', parseSimulation),
    'make the remote slow or unreliable: rtt=20ms,rate=25M,errors=0.01,seed=7',
  ),

  readOnly: defaulted('mount', toggle(), false, 'refuse changes, and take no lease'),
  uid: optional('mount', count({ min: 0, max: 2 ** 32 - 2 }), 'show everything as owned by this user'),
  gid: optional('mount', count({ min: 0, max: 2 ** 32 - 2 }), 'show everything as owned by this group'),
  umask: optional('mount', octal(), 'permission bits to take away from everything shown'),
  allowOther: defaulted(
    'mount',
    toggle(),
    false,
    'let other users in (unprivileged: needs user_allow_other in /etc/fuse.conf)',
  ),
  suid: defaulted('mount', toggle(), false, 'honour set-uid bits'),
  dev: defaulted('mount', toggle(), false, 'let device files open'),
  acl: defaulted('mount', toggle(), false, 'obey POSIX access control lists, if the remote keeps them'),
  mode: defaulted(
    'mount',
    choice('auto', 'writeback', 'passthrough'),
    'auto',
    'with --read-only, the kernel reads complete files by itself if it can (auto), never, or says why not',
  ),
  driver: defaulted(
    'mount',
    choice('kernel', 'fuse-native'),
    'kernel',
    'speak to /dev/fuse directly, or through the package fuse-native',
  ),
}

/** What a server takes. */
const serverTable = {
  tlsCert: optional('server', path('FILE'), 'speak TLS, as the owner of this certificate (PEM)'),
  tlsKey: optional('server', path('FILE'), "the certificate's private key (PEM)"),
  tlsCa: optional('server', path('FILE'), 'let in only clients with a certificate from this authority (PEM)'),
  pskFile: optional('server', path('FILE'), 'speak TLS with whoever has a key of this file: lines of NAME:HEX'),
  insecure: defaulted('server', toggle(), false, 'let in who does not speak TLS, from other machines as well'),
  maxConnections: defaulted('server', count({ min: 1, max: 10_000 }), 64, 'connections at once'),
  resizable: defaulted('server', toggle(), false, 'let clients change the size of a region (RESIZE)'),
}
/** What a server of gRPC takes. */
const {
  pskFile: _pskFile,
  resizable: _resizable,
  ...grpcServerTable
} = {
  ...serverTable,
  tokenFile: optional(
    'server',
    path('FILE'),
    'let in only who shows the first line of this file (PAGEFERRY_GRPC_TOKEN)',
  ),
  readOnly: defaulted('server', toggle(), false, 'refuse changes'),
}
/** Where it does that. */
const listenTable = {
  listen: needed('server', address(), 'where: unix:PATH, a port of this machine, or ADDRESS:PORT'),
}

/** What a block device of this machine takes. */
const joinTable = {
  loop: defaulted('server', toggle(), false, 'a loop device, though the kernel has NBD'),
  deadConnTimeout: defaulted(
    'server',
    time({ min: '1s', max: '24h', like: '5m' }),
    '5m',
    'when this process is killed, what uses /dev/nbdN waits this long for the next one',
  ),
}

const residentKind = size({ min: '4M', max: '8000T', like: '1G' })

/** What a server of memory takes. */
const memoryTable = {
  socket: needed('server', path('FILE'), 'where processes hand over their userfaultfd: a Unix socket'),
  onFault: defaulted(
    'server',
    choice('poison', 'wait'),
    'poison',
    'a page that cannot be had is a SIGBUS for who touches it, or is waited for',
  ),
  share: defaulted('server', toggle(), false, 'hand every process one and the same memory (a memfd), which it maps'),
  resident: optional(
    'server',
    residentKind,
    "with --share: so much of it is there at once, at most (default: half of the machine's memory)",
  ),
}

/** What the program around it takes. */
const programTable = {
  daemon: defaulted('process', toggle(), false, 'return when the mount is ready, and go on in the background'),
  hold: defaulted(
    'process',
    toggle(),
    true,
    'a small process holds the mount: should its daemon die, another one goes on, and programs notice a pause',
  ),
  metrics: optional('process', loopback(), 'serve Prometheus metrics on this address of this machine'),
  logLevel: defaulted('process', choice(...levels), 'info', 'say what is at least this urgent'),
  logFile: optional(
    'process',
    path('FILE'),
    'append JSON lines here (a daemon without it: daemon.log in the cache directory)',
  ),
}

type Table = Record<string, Row>
type Schemas<T extends Table> = { [Name in keyof T]: T[Name]['schema'] }

const schemaOf = <T extends Table>(table: T) =>
  z.strictObject(Object.fromEntries(Object.entries(table).map(([name, row]) => [name, row.schema])) as Schemas<T>)

const mountSchema = schemaOf(mountTable)
/** What `openRegion` takes: what has a meaning for one run of bytes. */
const { dirTtl: _dirTtl, localOnly: _localOnly, uid: _uid, gid: _gid, umask: _umask, ...rest } = mountTable
const {
  allowOther: _allowOther,
  suid: _suid,
  dev: _dev,
  mode: _mode,
  acl: _acl,
  driver: _driver,
  maxDelay: _maxDelay,
  shared: _shared,
  ...common
} = rest
const regionTable = {
  ...common,
  commitStore: optional(
    'remote',
    parsed('URL', given => given),
    'where intents and the lease are kept of what has no place beside it (nbd:): a store, /path or s3://bucket/prefix',
  ),
}
const regionSchema = z.strictObject({ ...schemaOf(regionTable).shape, ownThread: z.prefault(toggle().schema, false) })
const serverSchema = schemaOf({ ...listenTable, ...serverTable })
const joinSchema = z.strictObject({ ...schemaOf(joinTable).shape, device: z.optional(z.string()) })
const grpcSchema = schemaOf({ ...listenTable, ...grpcServerTable })
const commandSchema = schemaOf({ ...mountTable, ...programTable })
const { metrics: _metrics, hold: _hold, ...nbdProgramTable } = programTable
const attachTable = { ...regionTable, ...joinTable, ...nbdProgramTable }
const attachSchema = schemaOf(attachTable)
const nbdTable = { ...regionTable, ...nbdProgramTable, ...listenTable, ...serverTable }
const nbdSchema = schemaOf(nbdTable)
/** Memory is handed out, and what its owners make of it stays theirs: nothing is written. */
const { readOnly: _readOnly, commitStore: _store, fsync: _fsync, flushInterval: _flush, ...mostly } = regionTable
const { dirtyLimit: _dirty, whenFull: _full, pushWorkers: _push, uploadLimit: _upload, ...nearly } = mostly
const { lease: _lease, takeOver: _takeOver, ...readTable } = nearly
const memoryServerTable = { ...memoryTable, ...nbdProgramTable, ...readTable }
const memoryServerSchema = schemaOf(memoryServerTable)
const memorySchema = schemaOf(memoryTable)
const serveTable = { ...listenTable, ...grpcServerTable, ...nbdProgramTable }
const serveSchema = schemaOf(serveTable)

/** Options of `mountTree`: the command line's, in camelCase. Sizes are bytes or text like '256M'; times are ms or text like '30s'. */
export type MountOptions = Partial<z.input<typeof mountSchema>>
/** The same, read and checked; sizes in bytes, times in ms. */
export type MountSettings = Settled<z.output<typeof mountSchema>>
/**
 * Options of `openRegion`, as those of `mountTree`. `pull` may also be a function that says of each chunk of 128 KiB, by its index, how much
 * it is wanted: then everything is pulled, what is wanted most first. `ownThread`: its cache is in a thread of its own from the start, as
 * `mapRegion` needs it, so that mapping it takes no time; its reads resolve with a promise. Default false.
 */
export type RegionOptions = Partial<Omit<z.input<typeof regionSchema>, 'pull'>> & {
  pull?: z.input<typeof regionSchema>['pull'] | ((chunk: number) => number)
}
export type RegionSettings = Omit<Settled<z.output<typeof regionSchema>>, 'pullOrder'> & { pullOrder: PullOrder }
export type CommandSettings = Settled<z.output<typeof commandSchema>>

/** Options of `serveNbd`, but for what each region is called. */
export type ServerOptions = z.input<typeof serverSchema>
export type ServerSettings = z.output<typeof serverSchema>

/** Options of `attachRegion`. `device`: /dev/nbdN (default: any that is free). */
export type JoinOptions = Partial<z.input<typeof joinSchema>>
export type JoinSettings = z.output<typeof joinSchema>

/** Options of `serve`, but for the store. */
export type GrpcServerOptions = z.input<typeof grpcSchema>
export type GrpcServerSettings = z.output<typeof grpcSchema>

const mapSchema = z.strictObject({
  writeBack: z.prefault(toggle().schema, false),
  consistent: z.prefault(toggle().schema, false),
  detect: z.prefault(choice('faults', 'hashes').schema, 'faults'),
  prefetch: z.optional(toggle().schema),
  onFault: memoryTable.onFault.schema,
  resident: z.prefault(residentKind.schema, Math.floor(totalmem() / 2)),
})
/**
 * Options of `mapRegion`. `writeBack`: what is written goes to the region (default: it stays in the memory). `consistent`: each time
 * that is as all of the memory was in one moment, whichever threads write. `prefetch`: all of it is filled in the background, in
 * the region's order (default: as the region has it, `pull: 'all'`). `detect`: 'faults' (userfaultfd, the
 * default), or 'hashes', which needs nothing of the kernel: all of it comes first, and is looked through every second. `resident`: bytes that are there at once, at most (default: half of the machine's memory). `onFault`: a page that cannot be had is SIGBUS, which ends the program ('poison', the default), or is waited for.
 */
export type MapOptions = Partial<z.input<typeof mapSchema>>
export type MapSettings = z.output<typeof mapSchema>

/** Options of `serveMemory`. */
export type MemoryOptions = z.input<typeof memorySchema>
export type MemorySettings = z.output<typeof memorySchema>

/** What follows from several options together. */
type Settled<T> = Omit<T, 'dirtyLimit'> & { dirtyLimit: number }

export interface OptionRow {
  /** In camelCase, as the library calls it. */
  name: string
  flag: string
  variable: string
  /** Absent: a switch. */
  placeholder: string | undefined
  fallback: unknown
  help: string
  group: string
  repeatable: boolean
}

const kebab = (name: string) => name.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)

const rowsOf = (table: object): OptionRow[] =>
  Object.entries<Row>(table as Table).map(([name, row]) => ({
    name,
    flag: kebab(name),
    variable: `PAGEFERRY_${kebab(name).toUpperCase().replaceAll('-', '_')}`,
    placeholder: row.placeholder,
    fallback: row.fallback,
    help: row.help,
    group: row.group,
    repeatable: Array.isArray(row.fallback),
  }))

/** All options of `mount`, in the order of the help. */
export const mountOptionRows = rowsOf({ ...mountTable, ...programTable })
/** The same of `nbd serve`. */
export const nbdOptionRows = rowsOf(nbdTable)
/** The same of `serve`. */
export const serveOptionRows = rowsOf(serveTable)
/** The same of `memory serve`. */
export const memoryOptionRows = rowsOf(memoryServerTable)
/** The same of `nbd attach`. */
export const attachOptionRows = rowsOf(attachTable)

/** Where a command's options come from. */
interface CommandSources {
  flags: Record<string, unknown>
  env: NodeJS.ProcessEnv
  config?: string
}

/** Options by name, each with what it is called where it was given (`--fetch-size`, `PAGEFERRY_FETCH_SIZE`, `fetch-size in FILE`). */
interface Given {
  values: Record<string, unknown>
  calledAs: Record<string, string>
}

const usage = (detail: string) => new FerryError('USAGE', { detail })

/** Checks options as a caller of the library gives them. USAGE names the first one that is wrong. */
export function mountSettings(options: MountOptions = {}): MountSettings {
  return settle(check(mountSchema, { values: { ...options }, calledAs: {} }), name => name)
}

/** The same for a region. */
export function regionSettings(options: RegionOptions = {}): RegionSettings {
  const { pull, ...others } = options
  const order = typeof pull === 'function' ? pull : undefined
  const values = { ...others, ...(pull !== undefined && { pull: order ? 'all' : pull }) }
  const settings = settle(check(regionSchema, { values, calledAs: {} }), name => name)
  return order ? { ...settings, pullOrder: order } : settings
}

/** The same for a block device. */
export const joinSettings = (options: JoinOptions): JoinSettings =>
  check(joinSchema, { values: { ...options }, calledAs: {} })

/** The same for a server. */
export function serverSettings(options: ServerOptions): ServerSettings {
  return settleServer(check(serverSchema, { values: { ...options }, calledAs: {} }), name => name, [
    'tlsCert',
    'pskFile',
  ])
}

/** The same for a server of memory. */
export const memorySettings = (options: MemoryOptions): MemorySettings =>
  check(memorySchema, { values: { ...options }, calledAs: {} })

/** The same for memory of this program. */
export function mapSettings(options: MapOptions): MapSettings {
  const settings = check(mapSchema, { values: { ...options }, calledAs: {} })
  const given = (['consistent', 'prefetch', 'onFault', 'resident'] as const).find(name => options[name] !== undefined)
  if (settings.detect === 'hashes' && given)
    throw new FerryError('USAGE', { detail: `${given}: of memory with faults; not allowed with detect: 'hashes'` })
  if (settings.consistent && !settings.writeBack)
    throw new FerryError('USAGE', { detail: 'consistent: of what is written back; allowed with writeBack' })
  return settings
}

/** The same for a server of gRPC. */
export function grpcServerSettings(options: GrpcServerOptions): GrpcServerSettings {
  return settleServer(check(grpcSchema, { values: { ...options }, calledAs: {} }), name => name, ['tlsCert'])
}

/** Checks what the command line collected. USAGE names the first one that is wrong, and where it was given. */
export function commandSettings(sources: CommandSources): CommandSettings {
  const given = collect(mountOptionRows, sources)
  return settle(check(commandSchema, given), calledIn(given))
}

/** What a command that opens regions is told of them, and of the program. */
export interface RegionsSettings extends Pick<CommandSettings, 'daemon' | 'logLevel' | 'logFile'> {
  cacheDir: string | undefined
  region: RegionOptions
}

/** The same of `nbd attach`, which makes a device. */
export interface AttachSettings extends RegionsSettings {
  join: JoinSettings
}

/** The same of `nbd serve`, which has a server. */
export interface NbdSettings extends RegionsSettings {
  server: ServerSettings
}

/** What the command line collected for `nbd attach`. */
export function attachSettings(sources: CommandSources): AttachSettings {
  const given = collect(attachOptionRows, sources)
  const checked = check(attachSchema, given, calledIn(given))
  const { loop, deadConnTimeout } = checked
  return { ...regionsOf(given, checked), join: { loop, deadConnTimeout } }
}

/** The same for `nbd serve`. */
export function nbdSettings(sources: CommandSources): NbdSettings {
  const given = collect(nbdOptionRows, sources)
  const checked = check(nbdSchema, given, calledIn(given))
  const server = only(checked, { ...listenTable, ...serverTable }) as ServerSettings
  return { ...regionsOf(given, checked), server: settleServer(server, calledIn(given), ['tlsCert', 'pskFile']) }
}

/** The same of `memory serve`. */
export interface MemoryServerSettings extends RegionsSettings {
  memory: MemorySettings
}

/** The same for `memory serve`. */
export function memoryServerSettings(sources: CommandSources): MemoryServerSettings {
  const given = collect(memoryOptionRows, sources)
  const checked = check(memoryServerSchema, given, calledIn(given))
  const { daemon, logLevel, logFile, cacheDir } = checked
  const region = { ...only(given.values, readTable), readOnly: true } as RegionOptions
  return { daemon, logLevel, logFile, cacheDir, region, memory: only(checked, memoryTable) as MemorySettings }
}

/** What the command line collected for `serve`. */
export interface ServeSettings extends Pick<CommandSettings, 'daemon' | 'logLevel' | 'logFile'> {
  server: GrpcServerSettings
}

/** The same for `serve`. */
export function serveSettings(sources: CommandSources): ServeSettings {
  const given = collect(serveOptionRows, sources)
  const checked = check(serveSchema, given, calledIn(given))
  const { daemon, logLevel, logFile } = checked
  const server = only(checked, { ...listenTable, ...grpcServerTable }) as GrpcServerSettings
  return { daemon, logLevel, logFile, server: settleServer(server, calledIn(given), ['tlsCert']) }
}

function regionsOf(
  given: Given,
  checked: Omit<z.output<typeof attachSchema>, keyof typeof joinTable>,
): RegionsSettings {
  settle(checked, calledIn(given))
  const { daemon, logLevel, logFile, cacheDir } = checked
  return { daemon, logLevel, logFile, cacheDir, region: only(given.values, regionTable) as RegionOptions }
}

/** The options of one table. */
const only = (values: object, table: object) =>
  Object.fromEntries(Object.entries(values).filter(([name]) => Object.hasOwn(table, name)))

const calledIn =
  ({ calledAs }: Given) =>
  (name: string) =>
    calledAs[name] ?? `--${kebab(name)}`

/** One value that is not in the table, such as an option of another command. USAGE names it. */
export function usageOf<Output, Input>(name: string, { schema }: Kind<Output, Input>, given: Input): Output {
  return check(z.object({ value: schema }), { values: { value: given }, calledAs: { value: name } }).value
}

function check<S extends z.ZodMiniType>(
  schema: S,
  { values, calledAs }: Given,
  called = (name: string) => calledAs[name] ?? name,
): z.output<S> {
  const checked = schema.safeParse(values)
  if (checked.success) return checked.data
  const [issue] = checked.error.issues
  if (issue.code === 'unrecognized_keys') throw usage(`${issue.keys[0]}: there is no such option`)
  const name = String(issue.path[0])
  throw usage(`${called(name)}: ${issue.message.replace(/^got undefined/, 'nothing was given')}`)
}

interface Dependent {
  cacheSize: number
  dirtyLimit?: number | undefined
  readOnly: boolean
  takeOver: boolean
  shared?: boolean
  mode?: MountSettings['mode']
  acl?: boolean
  driver?: MountSettings['driver']
}

/** Defaults and refusals that depend on more than one option. */
function settle<T extends Dependent>(settings: T, called: (name: string) => string): Settled<T> {
  const { cacheSize, dirtyLimit = Math.min(2 ** 30, cacheSize / 2), readOnly, takeOver } = settings
  if (dirtyLimit > cacheSize)
    throw usage(
      `${called('dirtyLimit')}: got ${formatBytes(dirtyLimit)}; allowed: at most the ${formatBytes(cacheSize)} of ${called('cacheSize')}`,
    )
  if (readOnly && takeOver)
    throw usage(`${called('takeOver')}: a mount with ${called('readOnly')} has nothing to take over`)
  const other = readOnly ? 'readOnly' : takeOver ? 'takeOver' : undefined
  if (settings.shared && other)
    throw usage(`${called('shared')}: of those who write in turns; not allowed with ${called(other)}`)
  if (settings.mode === 'passthrough' && !readOnly)
    throw usage(
      `${called('mode')}: got passthrough; allowed with ${called('readOnly')}: writers have the writeback cache`,
    )
  if (settings.driver === 'fuse-native' && (settings.acl || settings.mode === 'passthrough'))
    throw usage(
      `${called(settings.acl ? 'acl' : 'mode')}: the driver fuse-native does not have it; allowed with ${called('driver')} kernel`,
    )
  return { ...settings, dirtyLimit }
}

function settleServer<T extends ServerSettings | GrpcServerSettings>(
  settings: T,
  called: (name: string) => string,
  secureBy: (keyof T & ('tlsCert' | 'pskFile'))[],
): T {
  const { tlsCert, tlsKey, tlsCa, listen, insecure } = settings
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw usage(`${called('tlsCert')} and ${called('tlsKey')} go together`)
  if (tlsCa !== undefined && tlsCert === undefined)
    throw usage(`${called('tlsCa')}: without ${called('tlsCert')} there is no TLS`)
  const isSecure = secureBy.some(name => settings[name] !== undefined)
  if (!isSecure && !insecure && 'host' in listen && !isLoopback(listen.host))
    throw usage(
      `${called('listen')}: ${listen.host} is seen by other machines; allowed with ${secureBy.map(called).join(' or ')}, or with ${called('insecure')}`,
    )
  return settings
}

/** Flag before environment before config file; what is not given anywhere keeps its default. */
function collect(rows: OptionRow[], { flags, env, config }: CommandSources): Given {
  const given: Given = { values: {}, calledAs: {} }
  const file = config === undefined ? {} : readConfig(rows, config)
  for (const { name, flag, variable } of rows) {
    const [value, calledAs] =
      flags[name] !== undefined
        ? [flags[name], `--${flag}`]
        : env[variable] !== undefined && env[variable] !== ''
          ? [env[variable], variable]
          : [file[flag], `${flag} in ${config}`]
    if (value === undefined) continue
    given.values[name] = value
    given.calledAs[name] = calledAs
  }
  return given
}

function readConfig(rows: OptionRow[], file: string): Record<string, unknown> {
  let source: string
  try {
    source = readFileSync(file, 'utf8')
  } catch (error) {
    throw usage(`--config: ${file} cannot be read (${(error as NodeJS.ErrnoException).code})`)
  }
  let table: Record<string, unknown>
  try {
    table = parseToml(source)
  } catch (error) {
    // The rest of the message draws the line in question.
    throw usage(`--config: ${file} is not TOML: ${(error as Error).message.split('\n')[0]}`)
  }
  const known = new Set(rows.map(row => row.flag))
  const unknown = Object.keys(table).find(key => !known.has(key))
  if (unknown) throw usage(`${unknown} in ${file}: there is no such option`)
  return table
}
