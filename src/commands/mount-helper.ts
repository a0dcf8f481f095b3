// mount.pageferry: what mount(8) calls for a file system of type pageferry, so that /etc/fstab and systemd can name one.
//
//   mount.pageferry REMOTE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

/** By this name the program is the helper: a symbolic link to it in /sbin. */
export const HELPER = 'mount.pageferry'

/** What mount(8), mount units and fstab(5) mean for themselves, and what is so anyway. */
const ignored = new Set([
  ...['rw', 'defaults', 'auto', 'noauto', 'user', 'nouser', 'users', 'owner', 'group', '_netdev', 'nofail', 'nosuid'],
  ...['nodev', 'exec', 'async', 'relatime', 'noatime', 'nodiratime', 'norelatime', 'strictatime', 'remount', 'silent'],
])
const isComment = (name: string) => /^(x-|X-|comment$)/.test(name)
const renamed: Record<string, string> = { ro: 'read-only' }

/** The command line of `pageferry mount` that it stands for; null: nothing is to be done (-f). */
export function helperArguments(given: string[]): string[] | null {
  const places: string[] = []
  const flags: string[] = []
  let isFake = false
  for (let at = 0; at < given.length; at++) {
    const argument = given[at]
    if (argument === '-o') flags.push(...given[++at].split(',').flatMap(flagOf))
    else if (argument === '-t' || argument === '-N') at++
    else if (/^-[sfnv]+$/.test(argument)) isFake ||= argument.includes('f')
    else places.push(argument)
  }
  return isFake ? null : ['mount', '--daemon', ...flags, ...places]
}

/** cache_size=10G and cache-size=10G are --cache-size 10G. What there is not, the command line refuses. */
function flagOf(option: string): string[] {
  const [, name, value] = /^([^=]*)(?:=(.*))?$/s.exec(option)!
  if (name === '' || ignored.has(name) || isComment(name)) return []
  const flag = `--${renamed[name] ?? name.replaceAll('_', '-')}`
  return value === undefined ? [flag] : [flag, value]
}
