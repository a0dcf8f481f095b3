// Workers load compiled JavaScript: make sure that it is there and as new as the sources.
import { execFile } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

const project = join(import.meta.dirname, '..', '..')
const sources = ['src/base', 'src/linux', 'src/remote']

const modified = (path: string) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/** Runs the compiler if a source that a remote is made of is newer than what was compiled of it. Others' type errors do not matter here. */
export async function compileOnce(): Promise<void> {
  const files = [
    'src/open.ts',
    ...sources.flatMap(folder =>
      readdirSync(join(project, folder))
        .filter(name => name.endsWith('.ts'))
        .map(name => `${folder}/${name}`),
    ),
  ]
  const isOld = (file: string) =>
    modified(join(project, file)) > modified(join(project, 'dist', file.replace(/\.ts$/, '.js')))
  if (!files.some(isOld)) return
  await promisify(execFile)('npx', ['tsc', '-p', 'tsconfig.build.json'], { cwd: project }).catch(() => {})
}
