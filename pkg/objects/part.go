package objects

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"sync"
)

// blockSize is the grain in which writers take memory: a small file costs one block and not a whole part.
const blockSize = 256 << 10

// blockPool hands out blocks and keeps a bounded number of those that come back. It never makes a writer wait.
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
		default: // enough are kept; the garbage collector has this one
		}
	}
}

// part is the bytes of one part, in blocks that are all full but the last.
type part struct {
	blocks [][]byte
	size   int
}

// fill copies p behind what is there.
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

// sums returns the SHA-256 of the bytes, in lower-case hex, and their CRC32C.
func (b *part) sums() (string, uint32) {
	sha, crc := sha256.New(), uint32(0)
	for _, block := range b.blocks {
		sha.Write(block)
		crc = crc32.Update(crc, castagnoli, block)
	}
	return hex.EncodeToString(sha.Sum(nil)), crc
}

// free gives the blocks back; the part is empty afterwards.
func (b *part) free(pool *blockPool) {
	pool.put(b.blocks)
	*b = part{}
}

// partReader is the body of a request that sends a part. It can seek to its start, which is what the library needs
// to repeat a request.
//
// The HTTP transport may go on reading a body after the request has failed. So reads and detach exclude each other,
// and after detach nothing reads blocks that another part may hold by then.
type partReader struct {
	mu       sync.Mutex
	blocks   [][]byte
	block    int // of the next byte
	offset   int // of the next byte in its block
	detached bool
}

var errDetached = errors.New("the part's request is over")

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

// Seek goes back to the start; the library never asks for anything else.
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
