// Families of constants: one const object each; the names in logs and errors are derived from it, never written twice.

/** The name of `value` in a family of constants, or `unknown(value)`. */
export const nameOf = (family: Readonly<Record<string, number>>, value: number): string =>
  Object.keys(family).find(key => family[key] === value) ?? `unknown(${value})`

/** The flags of a family that are set in `value` (up to 2^53), joined by `|`; what is left over follows in hex; `0` if there are none. */
export function flagsOf(family: Readonly<Record<string, number>>, value: number): string {
  let rest = BigInt(value)
  const names: string[] = []
  for (const [name, flag] of Object.entries(family)) {
    const bits = BigInt(flag)
    if (bits === 0n || (rest & bits) !== bits) continue
    names.push(name)
    rest &= ~bits
  }
  if (rest !== 0n || names.length === 0) names.push(rest === 0n ? '0' : `0x${rest.toString(16)}`)
  return names.join('|')
}
