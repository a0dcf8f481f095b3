// Who may import whom: design.md section 2, as data.
import { readdirSync, readFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { describe, expect, test } from '@jest/globals'

const project = resolve(import.meta.dirname, '..')

/** What each folder of src may import besides itself. `surface`: the files in src itself, which rank with index.ts. */
const mayImport: Record<string, string[]> = {
  base: [],
  wire: ['base'],
  chunk: ['base'],
  linux: ['base'],
  remote: ['base', 'wire', 'chunk', 'linux'],
  cache: ['base', 'wire', 'chunk', 'remote'],
  fs: ['base', 'wire', 'chunk', 'linux', 'remote', 'cache'],
  nbd: ['base', 'wire', 'chunk', 'linux', 'remote', 'cache'],
  userfault: ['base', 'wire', 'chunk', 'linux', 'remote', 'cache'],
  serve: ['base', 'wire', 'linux', 'remote'],
  surface: ['base', 'wire', 'chunk', 'linux', 'remote', 'cache', 'fs', 'nbd', 'userfault', 'serve'],
  commands: ['base', 'wire', 'chunk', 'linux', 'remote', 'cache', 'fs', 'nbd', 'userfault', 'serve', 'surface'],
  cli: ['commands'],
}

/** The engine and the doors know remotes by their interfaces only. */
const interfaces = ['blob', 'store', 'tree', 'commits'].map(name => `src/remote/${name}.ts`)
const onlyInterfaces = ['cache', 'fs', 'nbd', 'userfault']

/** Packages that only some places may know. */
const owners: Record<string, RegExp> = {
  koffi: /^src\/linux\//,
  lmdb: /^src\/cache\//,
  msgpackr: /^src\/(cache|remote)\//,
  '@node-rs/xxhash': /^src\/chunk\//,
  'fuse-native': /^src\/fs\/fuse-native\.ts$/,
  '@aws-sdk/client-s3': /^src\/remote\/s3(-\w+)?\.ts$/,
  '@smithy/core': /^src\/remote\/s3-client\.ts$/,
  '@smithy/node-http-handler': /^src\/remote\/s3-client\.ts$/,
  hpagent: /^src\/remote\/s3-client\.ts$/,
  'proxy-from-env': /^src\/remote\/s3-client\.ts$/,
  '@grpc/grpc-js': /^src\/(remote\/grpc-(client|proto)|serve\/\w+)\.ts$/,
  '@grpc/proto-loader': /^src\/remote\/grpc-proto\.ts$/,
  ioredis: /^src\/remote\/redis-client\.ts$/,
  commander: /^src\/commands\/program\.ts$/,
  pino: /^src\/log\.ts$/,
  'prom-client': /^src\/metrics\.ts$/,
  'smol-toml': /^src\/options\.ts$/,
  zod: /^src\/(options|option-kinds|control|registry)\.ts$/,
}

interface Import {
  /** Both relative to the project; a package by its name. */
  importer: string
  imported: string
}

const layerOf = (file: string): string => {
  const [top, folder, rest] = file.split('/')
  if (top !== 'src') return 'cli'
  return rest === undefined ? 'surface' : folder
}

const sources = [
  'cli.ts',
  ...readdirSync(join(project, 'src'), { recursive: true, encoding: 'utf8' })
    .filter(name => name.endsWith('.ts'))
    .map(name => `src/${name}`),
]

/** `import ... from 'x'`, `export ... from 'x'`, `import 'x'`, `import('x')`, `require('x')`, not in a comment. */
function importsIn(importer: string, text: string): Import[] {
  const code = text.replace(/^\s*(\/\/|\*|\/\*).*$/gm, '')
  const names = [...code.matchAll(/(?:\bfrom\s+|\b(?:import|require|require\.resolve)\s*\(?\s*)'([^']+)'/g)].map(
    ([, name]) => name,
  )
  return names
    .filter(name => !name.startsWith('node:'))
    .map(name => {
      if (!name.startsWith('.'))
        return {
          importer,
          imported: name
            .split('/')
            .slice(0, name.startsWith('@') ? 2 : 1)
            .join('/'),
        }
      return { importer, imported: relative(project, resolve(project, importer, '..', name)).replace(/\.js$/, '.ts') }
    })
}

const imports = sources.flatMap(file => importsIn(file, readFileSync(join(project, file), 'utf8')))
const ours = imports.filter(({ imported }) => sources.includes(imported))

/** Null: it is allowed. */
function complaint({ importer, imported }: Import): string | null {
  const [from, to] = [layerOf(importer), layerOf(imported)]
  if (from === to) return null
  if (!mayImport[from]?.includes(to)) return `${importer} imports ${imported}: ${from} may not import ${to}`
  if (to === 'remote' && onlyInterfaces.includes(from) && !interfaces.includes(imported))
    return `${importer} imports ${imported}: ${from} knows remotes by their interfaces only`
  return null
}

describe('the arrows', () => {
  test('every import follows them', () => {
    expect(ours.length).toBeGreaterThan(50)
    expect(ours.map(complaint).filter(Boolean)).toEqual([])
  })

  test('every folder has its place', () => {
    expect([...new Set(sources.map(layerOf))].filter(layer => !(layer in mayImport))).toEqual([])
  })

  test('they do not lead back', () => {
    const order = Object.keys(mayImport)
    for (const [from, allowed] of Object.entries(mayImport))
      for (const to of allowed) expect(order.indexOf(to)).toBeLessThan(order.indexOf(from))
  })

  test('every import of a file leads to one', () => {
    const missing = imports.filter(
      ({ imported }) => imported.includes('/') && imported.endsWith('.ts') && !sources.includes(imported),
    )
    expect(missing).toEqual([])
  })
})

describe('packages', () => {
  test('are known where they are wrapped, and nowhere else', () => {
    const strays = imports.filter(({ importer, imported }) => owners[imported] && !owners[imported].test(importer))
    expect(strays.map(({ importer, imported }) => `${importer} imports ${imported}`)).toEqual([])
  })

  test('that take long to load are loaded when what needs them is opened', () => {
    const others = sources.filter(file => !/^src\/(remote\/(s3|redis|grpc|r3map)|serve\/)/.test(file))
    const early = others.filter(file => {
      const text = readFileSync(join(project, file), 'utf8').replace(/^import type [^']*'[^']*'$/gm, '')
      return /\bfrom '[^']*\/(s3|redis|grpc|r3map)(-\w+)?\.js'/.test(text)
    })
    expect(early).toEqual([])
  })

  test('that are imported are dependencies', () => {
    const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(project, 'package.json'), 'utf8'))
    const known = new Set(Object.keys({ ...dependencies, ...optionalDependencies }))
    const packages = imports.filter(({ imported }) => !imported.endsWith('.ts')).map(({ imported }) => imported)
    expect([...new Set(packages)].filter(name => !known.has(name))).toEqual([])
  })
})

describe('this test', () => {
  test('would notice', () => {
    const found = importsIn(
      'src/cache/x.ts',
      "import { a } from '../linux/libc.js'\nexport * from '../remote/file-tree.js'\nawait import('koffi')\n// from 'comment'\n",
    )
    expect(found).toHaveLength(3)
    expect(complaint(found[0])).toMatch(/cache may not import linux/)
    expect(complaint(found[1])).toMatch(/interfaces only/)
    expect(owners.koffi.test(found[2].importer)).toBe(false)
  })
})
