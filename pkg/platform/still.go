package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ReadStill reads a file of at most so many bytes that nobody writes at the same time: half a list of exceptions is a
// wider grant, and half a list of clients lacks some. Without data there is no FileInfo either, so that the next call reads
// again; but a file that is too large is known by its FileInfo.
func ReadStill(path string, most int) ([]byte, fs.FileInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > most {
		return nil, before, fmt.Errorf("larger than %d bytes", most)
	}
	after, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !SameContent(before, after) || int64(len(data)) != before.Size() {
		return nil, nil, errors.New("changed while it was read")
	}
	return data, before, nil
}

// SameContent reports whether two looks at a file saw the same content.
func SameContent(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
