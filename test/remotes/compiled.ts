// Workers load compiled JavaScript: make sure that it is there and as new as the sources.
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { transformSync } from '@swc/core'

const project = join(import.meta.dirname, '..', '..')
const folders = ['src/base', 'src/linux', 'src/remote']

const modifiedMs = (path: string) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/** Translates what is newer as a source than in `dist`: a few ms a file, where the compiler would check all types for half a minute. */
export function compileOnce(): void {
  const inFolder = (folder: string) => readdirSync(join(project, folder)).map(name => `${folder}/${name}`)
  const files = ['src/open.ts', ...folders.flatMap(inFolder)].filter(name => name.endsWith('.ts'))
  for (const file of files) {
    const [source, target] = [join(project, file), join(project, 'dist', file.replace(/\.ts$/, '.js'))]
    if (modifiedMs(source) <= modifiedMs(target)) continue
    const { code } = transformSync(readFileSync(source, 'utf8'), {
      filename: source,
      jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
      module: { type: 'es6' },
    })
    mkdirSync(dirname(target), { recursive: true })
    // Whole or not at all: other test files may be loading it.
    writeFileSync(`${target}.${process.pid}`, code)
    renameSync(`${target}.${process.pid}`, target)
  }
}
