package loader

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// block is a run of whole lines of one file.
type block struct {
	file int   // index of the file
	line int64 // number of the first line, from 1
	data []byte
	read int64 // bytes on disk since the previous block
}

// countingReader counts the bytes read of the file on disk.
type countingReader struct {
	from io.Reader
	n    int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

// blocks reads one file and yields its lines in blocks. A line of maxLine bytes or more is skipped and reported to
// tooLong.
func (r *reader) blocks(
	ctx context.Context, number int, file File, yield func(block) error, tooLong func(line int64),
) error {
	origin, err := os.Open(file.Path)
	if err != nil {
		return fmt.Errorf("open a file: %w", err)
	}
	defer origin.Close()
	count := &countingReader{from: origin}
	text := io.Reader(count)
	if strings.HasSuffix(file.Path, ".gz") {
		unzipped, err := gzip.NewReader(bufio.NewReaderSize(count, 256<<10))
		if err != nil {
			return fmt.Errorf("decompress %s: %w", file.Path, err)
		}
		defer unzipped.Close()
		text = unzipped
	}

	line, reported := int64(1), int64(0)
	rest := make([]byte, 0, r.blockSize)
	for ended, skipping := false, false; !ended; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data := rest
		if len(data) == cap(data) { // one line fills the buffer
			data = append(make([]byte, 0, min(2*cap(data), r.maxLine)), data...)
		}
		var err error
		if data, err = fill(text, data); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", file.Path, err)
		}
		ended = err != nil
		if skipping {
			end := bytes.IndexByte(data, '\n')
			if end < 0 {
				rest = data[:0]
				continue
			}
			data, skipping = data[end+1:], false
			line++
		}
		whole := bytes.LastIndexByte(data, '\n') + 1
		if whole == 0 && len(data) >= r.maxLine {
			tooLong(line)
			rest, skipping = make([]byte, 0, r.blockSize), true
			continue
		}
		if ended {
			whole = len(data)
		}
		rest = append(make([]byte, 0, max(r.blockSize, len(data)-whole)), data[whole:]...)
		if whole == 0 && !ended {
			continue
		}
		if err := yield(block{file: number, line: line, data: data[:whole], read: count.n - reported}); err != nil {
			return err
		}
		reported = count.n
		line += int64(bytes.Count(data[:whole], []byte{'\n'}))
	}
	if reported == count.n {
		return nil
	}
	return yield(block{file: number, line: line, read: count.n - reported}) // a skipped last line
}

// fill reads until the slice is full. It returns io.EOF with the last bytes, and another error for truncated gzip.
func fill(text io.Reader, data []byte) ([]byte, error) {
	for len(data) < cap(data) {
		n, err := text.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err != nil {
			return data, err
		}
	}
	return data, nil
}
