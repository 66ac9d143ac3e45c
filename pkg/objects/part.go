package objects

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"sync"
)

// blockSize is the unit of memory of writers: a small file takes one block, not a whole part.
const blockSize = 256 << 10

// blockPool reuses a bounded number of blocks. It never blocks a writer. A sync.Pool would keep an unbounded number until
// the next garbage collection.
type blockPool struct{ idle chan []byte }

func newBlockPool(bytes int) *blockPool {
	return &blockPool{idle: make(chan []byte, (bytes+blockSize-1)/blockSize)}
}

func (p *blockPool) get() []byte {
	select {
	case block := <-p.idle:
		return block
	default:
		return make([]byte, 0, blockSize)
	}
}

func (p *blockPool) put(blocks [][]byte) {
	for _, block := range blocks {
		select {
		case p.idle <- block[:0]:
		default: // the pool is full
		}
	}
}

// part is one part in blocks; all but the last are full.
type part struct {
	blocks [][]byte
	size   int
}

// fill appends p.
func (b *part) fill(pool *blockPool, p []byte) {
	b.size += len(p)
	for len(p) > 0 {
		last := len(b.blocks) - 1
		if last < 0 || len(b.blocks[last]) == blockSize {
			b.blocks = append(b.blocks, pool.get())
			last++
		}
		block := b.blocks[last]
		n := copy(block[len(block):blockSize], p)
		b.blocks[last] = block[:len(block)+n]
		p = p[n:]
	}
}

// sums returns the SHA-256 in lower-case hex, and the CRC32C.
func (b *part) sums() (string, uint32) {
	sha, crc := sha256.New(), uint32(0)
	for _, block := range b.blocks {
		sha.Write(block)
		crc = crc32.Update(crc, castagnoli, block)
	}
	return hex.EncodeToString(sha.Sum(nil)), crc
}

// free returns the blocks to the pool and empties the part.
func (b *part) free(pool *blockPool) {
	pool.put(b.blocks)
	*b = part{}
}

// partReader is the request body for a part. It can seek to its start, which minio-go needs to retry a request.
//
// The HTTP transport may continue to read a body after the request has failed. detach stops it from reading blocks that
// another part already uses.
type partReader struct {
	mu       sync.Mutex
	blocks   [][]byte
	block    int // of the next byte
	offset   int // of the next byte in its block
	detached bool
}

var errDetached = errors.New("the request of the part has ended")

func (b *part) reader() *partReader { return &partReader{blocks: b.blocks} }

func (r *partReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.detached {
		return 0, errDetached
	}
	read := 0
	for len(p) > read && r.block < len(r.blocks) {
		n := copy(p[read:], r.blocks[r.block][r.offset:])
		read += n
		r.offset += n
		if r.offset == len(r.blocks[r.block]) {
			r.block, r.offset = r.block+1, 0
		}
	}
	if read == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return read, nil
}

// Seek only supports seeking to the start; minio-go needs nothing else.
func (r *partReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.New("a part can only seek to its start")
	}
	r.block, r.offset = 0, 0
	return 0, nil
}

func (r *partReader) detach() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.detached = true
	r.blocks = nil
}
