// The command line: every command with its options and examples. What a command does is loaded when it is called.
import { readFileSync } from 'node:fs'
import { Command, Option } from 'commander'
import {
  attachOptionRows,
  memoryOptionRows,
  mountOptionRows,
  nbdOptionRows,
  type OptionRow,
  serveOptionRows,
} from '../options.js'
import type { Ready } from './daemonize.js'
import { EXIT, type ExitStatus } from './report.js'

const groups: Record<string, string> = {
  cache: 'Cache and write-back:',
  remote: 'Remote:',
  mount: 'Mount:',
  server: 'Server:',
  process: 'Process:',
}

/** The package's version; package.json is above this file, how far depends on whether it was built. */
function version(): string {
  for (let folder = new URL('.', import.meta.url); folder.pathname !== '/'; folder = new URL('..', folder)) {
    try {
      const { name, version } = JSON.parse(readFileSync(new URL('package.json', folder), 'utf8'))
      if (name === 'pageferry') return version
    } catch {
      // Not in this folder.
    }
  }
  return 'unknown'
}

function optionOf({ flag, placeholder, help, fallback, group, repeatable }: OptionRow): Option {
  const shown = fallback === undefined || fallback === false ? '' : ` (default: ${fallback})`
  const option = new Option(`--${flag}${placeholder ? ` <${placeholder}>` : ''}`, help + shown).helpGroup(groups[group])
  if (repeatable) option.argParser((value: string, earlier: string[] | undefined) => [...(earlier ?? []), value])
  return option
}

/** Switches that the environment or a config file has turned on can be turned off again. */
const negationOf = ({ flag }: OptionRow) => new Option(`--no-${flag}`).hideHelp()

const configOption = () =>
  new Option('--config <FILE>', 'read options from a TOML file: fetch-size = "1M"').helpGroup(groups.process)

function addOptions(command: Command, rows: OptionRow[]): void {
  for (const row of rows) {
    command.addOption(optionOf(row))
    if (row.placeholder === undefined) command.addOption(negationOf(row))
  }
}

const examples = (...lines: string[]) => `\nExamples:\n${lines.map(line => `  $ pageferry ${line}\n`).join('')}`

export interface ProgramOptions {
  /** Gets the exit status of the command that ran. */
  ended: (status: ExitStatus) => void
  /** This is a daemon, and who started it waits. */
  ready: Ready | undefined
}

/** The program with all its commands. */
export function program({ ended, ready }: ProgramOptions): Command {
  const pageferry = new Command('pageferry')
    .description('Remote bytes, used as if they were local.')
    .version(version(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this, or what a command takes')
    .helpCommand(false)
    // Errors are one line of ours (report.ts), never half a page of help.
    .exitOverride()
    .configureOutput({ writeErr: () => {}, outputError: () => {} })
    .addHelpText(
      'after',
      examples(
        'mount /srv/photos /mnt/photos            # in the foreground, until Ctrl-C',
        'mount --daemon /srv/photos /mnt/photos',
        'status',
        'umount /mnt/photos                       # sends what is left first',
      ),
    )

  const command = (name: string, description: string) => pageferry.command(name).description(description)
  /** Runs an action, and hands its exit status on. */
  const run =
    <Args extends unknown[]>(action: (...args: Args) => Promise<ExitStatus>) =>
    async (...args: Args) =>
      ended(await action(...args))

  const mount = command('mount', 'use a remote directory as a local one')
    .argument(
      '<remote>',
      'where the bytes live: /path, file:///path, s3://bucket/prefix, https://host/path, grpcs://host:port/, mem:',
    )
    .argument('<mountpoint>', 'an empty directory')
    .addOption(configOption())
  addOptions(mount, mountOptionRows)
  mount
    .addHelpText(
      'after',
      `${examples(
        'mount /srv/photos /mnt/photos',
        'mount --daemon --cache-size 50G --pull all /srv/films /mnt/films',
        'mount --read-only --allow-other /srv/photos /mnt/photos',
        'mount --simulate rtt=20ms,rate=25M /srv/photos /mnt/photos   # as if it were far away',
      )}\nEach option is also a variable (PAGEFERRY_FETCH_SIZE=1M) and a key of the config file; a flag goes before a variable,\na variable before the file.`,
    )
    .action(
      run(async (remote: string, mountpoint: string, flags: Record<string, unknown>) =>
        (await import('./mount.js')).mountCommand(remote, mountpoint, flags, ready),
      ),
    )

  const serve = command('serve', 'let other hosts use a directory or a region of this one, by gRPC').argument(
    '<remote>',
    'a directory; or a file, an export of NBD, or keys of Redis: one run of bytes',
  )
  addOptions(serve, serveOptionRows)
  serve
    .addOption(configOption())
    .addHelpText(
      'after',
      `${examples(
        'serve /srv/photos --listen unix:/run/photos.sock',
        'serve /srv/photos --listen 0.0.0.0:4711 --tls-cert host.pem --tls-key host.key --tls-ca clients.pem',
        'mount grpcs://host:4711/ /mnt/photos        # on another host',
      )}\nA region is there for programs of r3map as well (mount.v1.Backend).`,
    )
    .action(
      run(async (remote: string, flags: Record<string, unknown>) =>
        (await import('./serve-remote.js')).serveCommand(remote, flags, ready),
      ),
    )

  const memory = command('memory', 'a run of bytes as the memory of processes')
  memory.action(() => {
    process.stderr.write(memory.helpInformation())
    ended(EXIT.usage)
  })
  const memoryServe = memory
    .command('serve')
    .description('serve a region to processes that hand over their userfaultfd: pages come when they are touched')
    .argument('<region>', 'as for nbd serve')
    .addOption(configOption())
  addOptions(memoryServe, memoryOptionRows)
  memoryServe
    .addHelpText(
      'after',
      `${examples(
        'memory serve s3://snapshots/vm1.mem --socket /run/vm1.sock',
        'memory serve --daemon --pull all grpcs://host:7443/ --socket /run/vm1.sock',
      )}\nClients: Firecracker (mem_backend "Uffd"), and whoever speaks as it does. What they write stays theirs.`,
    )
    .action(
      run(async (region: string, flags: Record<string, unknown>) =>
        (await import('./memory.js')).memoryServeCommand(region, flags, ready),
      ),
    )

  const nbd = command('nbd', 'a run of bytes as a block device')
  nbd.action(() => {
    process.stderr.write(nbd.helpInformation())
    ended(EXIT.usage)
  })
  const nbdServe = nbd
    .command('serve')
    .description('serve regions by NBD: one run of bytes each, under a name')
    .argument(
      '<[NAME=]REGION...>',
      'a file or block device, s3://bucket/object, or chunks in a store: ?layout=chunks&size=10G',
    )
    .addOption(configOption())
  addOptions(nbdServe, nbdOptionRows)
  nbdServe
    .addHelpText(
      'after',
      `${examples(
        'nbd serve /srv/disk.img --listen unix:/run/disk.sock',
        'nbd serve --daemon --pull all root=s3://images/root.img data=/srv/data.img --listen 10809',
        "nbd serve 's3://images/scratch?layout=chunks&size=10G' --listen unix:/run/scratch.sock",
      )}\nClients: nbd-client, qemu (nbd://127.0.0.1/root, nbd+unix:///?socket=/run/disk.sock), nbdcopy, fio.\nFLUSH and FUA mean what --fsync says: durable here, or at the remote.`,
    )
    .action(
      run(async (regions: string[], flags: Record<string, unknown>) =>
        (await import('./nbd.js')).nbdServeCommand(regions, flags, ready),
      ),
    )

  const nbdAttach = nbd
    .command('attach')
    .description("make a region a block device of this machine: of the kernel's NBD client, or a loop device")
    .argument('<region>', 'as for nbd serve')
    .argument('[device]', '/dev/nbdN (default: any that is free)')
    .addOption(configOption())
  addOptions(nbdAttach, attachOptionRows)
  nbdAttach
    .addHelpText(
      'after',
      `${examples(
        'nbd attach --daemon s3://images/disk.img   # says which: /dev/nbd0, or /dev/loop0 where the kernel has no NBD',
        'nbd detach /dev/nbd0                       # sends what is left first',
      )}\nNeeds root.`,
    )
    .action(
      run(async (region: string, device: string | undefined, flags: Record<string, unknown>) =>
        (await import('./nbd.js')).nbdAttachCommand(region, device, flags, ready),
      ),
    )

  nbd
    .command('detach')
    .description('send what is left, then take the device away')
    .argument('<device>')
    .option('--timeout <TIME>', 'when nothing gets through for this long, detach and keep the rest (default: 60s)')
    .addHelpText('after', examples('nbd detach /dev/loop0'))
    .action(
      run(async (device: string, options: { timeout?: string }) =>
        (await import('./nbd.js')).nbdDetachCommand(device, options),
      ),
    )

  command('umount', 'send what is left, then unmount')
    .argument('<mountpoint>')
    .option('--timeout <TIME>', 'when nothing gets through for this long, unmount and keep the rest (default: 60s)')
    .addHelpText(
      'after',
      `${examples('umount /mnt/photos', 'umount --timeout 5m /mnt/photos')}\nExit status: 0 when the remote has everything, 1 when something is left (the next mount sends it), 2 for bad usage.`,
    )
    .action(
      run(async (mountpoint: string, options: { timeout?: string }) =>
        (await import('./unmount.js')).umountCommand(mountpoint, options),
      ),
    )

  command('upgrade', 'go on with a mount by the version of pageferry that runs this, without unmounting')
    .argument('<mountpoint>')
    .addHelpText('after', examples('upgrade /mnt/photos'))
    .action(run(async (given: string) => (await import('./upgrade.js')).upgradeCommand(given, version())))

  command('sync', 'return when the remote has everything written so far')
    .argument('[mountpoint]', 'a path in a mount, or its control socket (default: every mount)')
    .addHelpText('after', examples('sync', 'sync /mnt/photos'))
    .action(run(async (given?: string) => (await import('./unmount.js')).syncCommand(given)))

  command('status', 'how a mount is doing; without an argument every mount, and every journal with unsent work')
    .argument('[mountpoint]', 'a path in a mount, or its control socket')
    .option('--json', 'for programs')
    .addHelpText('after', examples('status', 'status --json /mnt/photos'))
    .action(
      run(async (given: string | undefined, options: { json?: boolean }) =>
        (await import('./status.js')).statusCommand(given, options),
      ),
    )

  command('pull', 'make a file, or everything below a directory, local')
    .argument('<path>')
    .addHelpText('after', examples('pull /mnt/photos/2024'))
    .action(run(async (path: string) => (await import('./paths.js')).pullCommand(path)))

  command('evict', 'give back the local space of what the remote has as well')
    .argument('<path>')
    .addHelpText('after', examples('evict /mnt/photos/2024'))
    .action(run(async (path: string) => (await import('./paths.js')).evictCommand(path)))

  command('refresh', 'look at the remote again')
    .argument('<path>')
    .addHelpText('after', examples('refresh /mnt/photos'))
    .action(run(async (path: string) => (await import('./paths.js')).refreshCommand(path)))

  command('conflicts', 'files that somebody else had changed at the remote as well')
    .argument('<mountpoint>')
    .option('--json', 'for programs')
    .addHelpText('after', examples('conflicts /mnt/photos'))
    .action(
      run(async (given: string, options: { json?: boolean }) =>
        (await import('./paths.js')).conflictsCommand(given, options),
      ),
    )

  command('doctor', 'look whether a mount would work here, and what to do if not')
    .option('--json', 'for programs')
    .option('--cache-dir <DIR>', 'the cache directory to look at')
    .addHelpText('after', examples('doctor'))
    .action(
      run(async (options: { json?: boolean; cacheDir?: string }) =>
        (await import('./doctor.js')).doctorCommand(options),
      ),
    )
  return pageferry
}
