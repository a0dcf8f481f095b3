// The names in a directory, as web servers list it: links in a page of HTML. Apache, nginx, caddy, python's http.server and others agree on that.

/** One name, as bytes (latin1). */
export interface Link {
  name: string
  isDirectory: boolean
}

const NAME_BYTES_MAX = 255

/** Where a link begins, and one attribute of it. Sticky: whatever a page has in it, it is looked through once. */
const LINK = /<a(?=\s)/gi
const ATTRIBUTE = /\s*([^\s=>]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+)))?/y

/** The links of a page that lead to what is directly below it, each once. */
export function linksIn(html: string, page: URL): Link[] {
  const links = new Map<string, Link>()
  for (const href of hrefsIn(html)) {
    const link = linkTo(unescapeHtml(href), page)
    if (link && !links.has(link.name)) links.set(link.name, link)
  }
  return [...links.values()]
}

function* hrefsIn(html: string): Generator<string> {
  const link = new RegExp(LINK)
  const attribute = new RegExp(ATTRIBUTE)
  while (link.test(html)) {
    let href: string | undefined
    attribute.lastIndex = link.lastIndex
    for (let found = attribute.exec(html); found; found = attribute.exec(html)) {
      link.lastIndex = attribute.lastIndex
      const [, name, quoted, single, bare] = found
      if (name.toLowerCase() === 'href') href ??= quoted ?? single ?? bare
    }
    if (href !== undefined) yield href
  }
}

/** null: it leads elsewhere, sorts the page, or is no name that a file can have. */
function linkTo(href: string, page: URL): Link | null {
  if (!URL.canParse(href, page.href)) return null
  const url = new URL(href, page)
  if (url.origin !== page.origin || url.search || !url.pathname.startsWith(page.pathname)) return null
  const [, encoded, slash] = /^([^/]+)(\/?)$/.exec(url.pathname.slice(page.pathname.length)) ?? []
  if (encoded === undefined || encoded.length > 3 * NAME_BYTES_MAX) return null
  const name = decodeBytes(encoded)
  if (name.length > NAME_BYTES_MAX || name === '.' || name === '..' || /[\0/]/.test(name)) return null
  return { name, isDirectory: slash === '/' }
}

/** Percent escapes are bytes. */
export const decodeBytes = (text: string) =>
  text.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))

export const encodeBytes = (name: string) =>
  name.replace(/[^\w.~!$&'()*+,;=:@-]/g, char => `%${char.charCodeAt(0).toString(16).padStart(2, '0').toUpperCase()}`)

const entities = new Map(Object.entries({ amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' }))

const unescapeHtml = (text: string) =>
  text.replace(/&(?:#x([0-9a-f]{1,6})|#(\d{1,7})|(\w+));/gi, (whole, hex, decimal, name) => {
    if (name !== undefined) return entities.get(name.toLowerCase()) ?? whole
    const code = hex ? Number.parseInt(hex, 16) : Number(decimal)
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole
  })
