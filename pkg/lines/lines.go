// Package lines reads the resources of files as lines, on all cores: NDJSON and FHIR Bundles, plain or gzipped. Memory is
// bounded by the block size and the longest line that is served, not by the files, except for the full URLs of a Bundle.
package lines

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Reader reads files in blocks of whole lines.
type Reader struct {
	BlockSize int // bytes; a block ends with the line in which it reaches this size
	MaxLine   int // size in bytes from which a line is too long; bounds the memory
	Takers    int // concurrent calls of take
	// Open returns the text of a file. It is called from several goroutines.
	Open func(file int) (Text, error)
	// Broken is called when the rest of a file cannot be decompressed or parsed, from several goroutines. Its lines up to
	// there are taken.
	Broken func(file int, err error)
	// Base is called after a file was read, if it is set, from several goroutines: for each base of full URLs of resources in
	// its Bundles, up to 100, with the place of the first such entry (Block.Place) and its number. Ids of two servers may
	// collide.
	Base func(file int, base, place string, number int64)
}

// Block is a run of whole lines of one file.
type Block struct {
	File    int // its index
	line    int64
	offset  int64 // in the text
	data    []byte
	maxLine int
	entries bool
}

// Place names a line for people, such as "line 7". The entries of Bundles are counted, not their lines.
func (b *Block) Place(line Line) string {
	if b.entries {
		return fmt.Sprintf("entry %d", line.Number)
	}
	return fmt.Sprintf("line %d", line.Number)
}

// Line is one line without the white space around it.
type Line struct {
	Number  int64 // in the file, from 1
	Offset  int64 // of Body in the text
	Body    []byte
	TooLong bool // Body may be cut off
}

// Lines yields the lines of the block that are not blank. A byte order mark at the beginning of a line is skipped: files
// that have one may have been joined.
func (b *Block) Lines(yield func(Line) bool) {
	data, offset := b.data, b.offset
	for number := b.line; len(data) > 0; number++ {
		text, rest, _ := bytes.Cut(data, []byte{'\n'})
		body := bytes.TrimLeft(bytes.TrimPrefix(text, []byte("\ufeff")), " \t\r")
		line := Line{number, offset + int64(len(text)-len(body)), bytes.TrimRight(body, " \t\r"), len(text) >= b.maxLine}
		if (line.TooLong || len(line.Body) > 0) && !yield(line) {
			return
		}
		offset += int64(len(data) - len(rest))
		data = rest
	}
}

// Read reads every file once and calls take for each block, from several goroutines. A block is valid until take returns.
func (r *Reader) Read(ctx context.Context, files []File, take func(context.Context, *Block) error) error {
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	// The largest file first, so that no large file is read alone at the end.
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(files[j].Size, files[i].Size) })

	group, ctx := errgroup.WithContext(ctx)
	blocks := make(chan *Block)
	pool := &sync.Pool{New: func() any { return new(Block) }}
	group.Go(func() error {
		defer close(blocks)
		readers, ctx := errgroup.WithContext(ctx)
		readers.SetLimit(runtime.GOMAXPROCS(0))
		for _, number := range order {
			readers.Go(func() error { return r.readFile(ctx, files[number].Path, number, pool, blocks) })
		}
		return readers.Wait()
	})
	for range r.Takers {
		group.Go(func() error {
			for b := range blocks {
				if err := take(ctx, b); err != nil {
					return err
				}
				if cap(b.data) <= 4*r.BlockSize {
					pool.Put(b)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readFile sends the blocks of one file.
func (r *Reader) readFile(ctx context.Context, path string, number int, pool *sync.Pool, to chan<- *Block) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	text, err := r.Open(number)
	if broken := new(BrokenError); errors.As(err, &broken) {
		r.Broken(number, broken)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, text.Close()) }()
	buffered := bufio.NewReaderSize(text, r.BlockSize)
	line, offset := int64(1), int64(0)
	for ended := false; !ended; {
		b := pool.Get().(*Block)
		*b = Block{File: number, line: line, offset: offset, maxLine: r.MaxLine, entries: text.Entries, data: b.data[:0]}
		size, err := b.fill(ctx, buffered, r.BlockSize)
		broken := new(BrokenError)
		if ended = errors.Is(err, io.EOF) || errors.As(err, &broken); err != nil && !ended {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if broken.error != nil {
			r.Broken(number, broken)
			size = b.dropLast(size) // it is incomplete
		}
		if size == 0 {
			break
		}
		offset += size
		line += int64(bytes.Count(b.data, []byte{'\n'}))
		if size > int64(len(b.data)) { // the end of the last line was cut off
			line++
		}
		select {
		case to <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Base != nil && text.bases != nil {
		for base, first := range text.bases.first {
			r.Base(number, base, (&Block{entries: text.Entries}).Place(Line{Number: first}), first)
		}
	}
	return nil
}

// dropLast removes an unfinished last line and returns the size of the rest in the text.
func (b *Block) dropLast(size int64) int64 {
	last := bytes.LastIndexByte(b.data, '\n') + 1
	if size > int64(len(b.data)) { // a line that is too long was cut off: it is the last one
		size = int64(last)
	} else {
		size -= int64(len(b.data) - last)
	}
	b.data = b.data[:last]
	return size
}

// fill reads the block and returns its size in the text. It keeps only the beginning of a last line that is too long. It
// returns io.EOF with the last block.
func (b *Block) fill(ctx context.Context, text *bufio.Reader, size int) (read int64, err error) {
	next, err := text.Peek(size) // unlike io.ReadFull it keeps the error of a truncated gzip stream
	b.data = append(b.data, next...)
	if _, discarded := text.Discard(len(next)); discarded != nil {
		return 0, discarded
	}
	read = int64(len(next))
	last := bytes.LastIndexByte(b.data, '\n') + 1
	for whole := last == len(b.data); err == nil && !whole; {
		next, err = text.ReadSlice('\n')
		whole = err == nil
		if errors.Is(err, bufio.ErrBufferFull) {
			err = ctx.Err()
		}
		read += int64(len(next))
		if len(b.data)-last < b.maxLine {
			b.data = append(b.data, next...)
		}
	}
	return read, err
}
