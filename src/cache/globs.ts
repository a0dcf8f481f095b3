// Shell patterns over names: `*`, `?` and `[...]`, as in `--local-only '*-shm'`.

/** Does any of the patterns match the whole name? Names are bytes (latin1 strings). */
export function globs(patterns: readonly string[]): (name: string) => boolean {
  if (patterns.length === 0) return () => false
  const expression = new RegExp(`^(?:${patterns.map(toSource).join('|')})$`, 's')
  return name => expression.test(name)
}

const toSource = (pattern: string) =>
  pattern.replace(/\[!?[^\]]+\]|[\s\S]/g, part => {
    if (part === '*') return '.*'
    if (part === '?') return '.'
    if (part.length > 1) return part.replace('[!', '[^').replace(/\\/g, '\\\\')
    return part.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
  })
