// Bytes over bytes.

/** Puts what of `piece`, which begins at `pieceAt`, falls into `into`, which begins at `at`. */
export function overlay(into: Uint8Array, at: number, piece: Uint8Array, pieceAt: number): void {
  const from = Math.max(at, pieceAt)
  const to = Math.min(at + into.byteLength, pieceAt + piece.byteLength)
  if (from < to) into.set(piece.subarray(from - pieceAt, to - pieceAt), from - at)
}
