// The package as others get it: what is in it, that it loads, and that everything public is documented.
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, test } from '@jest/globals'
import ts from 'typescript'
import { requires } from './fixtures/requires.js'

const run = promisify(execFile)
const project = resolve(import.meta.dirname, '..')
const manifest = JSON.parse(readFileSync(join(project, 'package.json'), 'utf8'))
const built = requires('built')

built.describe('the package', () => {
  test('has the program, the library and the documents, and nothing else', async () => {
    const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: project })
    const [{ files }] = JSON.parse(stdout) as [{ files: { path: string; mode: number }[] }]
    const paths = files.map(({ path }) => path)
    expect(paths).toEqual(
      expect.arrayContaining([
        'package.json',
        'proto/pageferry.proto',
        'dist/cli.js',
        'dist/src/index.js',
        'dist/src/index.d.ts',
      ]),
    )
    expect(
      paths.filter(path => !/^(package\.json|README\.md|LICENSE|docs\/|proto\/|dist\/cli\.|dist\/src\/)/.test(path)),
    ).toEqual([])
  }, 60_000)

  test('names files that are there', () => {
    const named = [...Object.values(manifest.bin), ...Object.values(manifest.exports['.'])] as string[]
    for (const path of named) expect(() => readFileSync(join(project, path))).not.toThrow()
    expect(readFileSync(join(project, manifest.bin.pageferry), 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/)
  })

  test('loads, and exports what the sources say and no more', async () => {
    const url = pathToFileURL(join(project, 'dist/src/index.js')).href
    // In a process of its own: native libraries do not like a test runner's contexts.
    const script = `import(${JSON.stringify(url)}).then(m => console.log(JSON.stringify(Object.keys(m))))`
    const { stdout } = await run(process.execPath, ['-e', script])
    expect(JSON.parse(stdout).sort()).toEqual([
      ...['FerryError', 'attachRegion', 'isFerryError', 'mapRegion', 'mountTree', 'openRegion', 'openRemote', 'serve'],
      ...['serveMemory', 'serveNbd'],
    ])
  }, 60_000)
})

describe('the public surface', () => {
  const index = join(project, 'src/index.ts')
  const options: ts.CompilerOptions = {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    skipLibCheck: true,
    strict: true,
  }
  const program = ts.createProgram([index], options)
  const checker = program.getTypeChecker()
  const module = checker.getSymbolAtLocation(program.getSourceFile(index)!)!
  const exported = checker.getExportsOfModule(module).map(symbol => ({
    name: symbol.name,
    target: symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol,
  }))

  test('is made of named re-exports', () => {
    const source = readFileSync(index, 'utf8')
    for (const line of source.split('\n')) expect(line).toMatch(/^(\/\/.*|export (type )?\{ .* \} from '.*'|)$/)
  })

  test('every export has a docstring', () => {
    expect(exported.length).toBeGreaterThan(8)
    const silent = exported.filter(({ target }) => target.getDocumentationComment(checker).length === 0)
    expect(silent.map(({ name }) => name)).toEqual([])
  })
})
