// Package configfile reads configuration files.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/goccy/go-yaml"
)

// ReadStable reads a file of at most limit bytes. It fails if the file changes during the read, because a partial list of
// exceptions is a wider grant, and a partial list of clients is incomplete. The FileInfo is nil after an error, so that
// the caller reads again, except for a file that is too large.
func ReadStable(path string, limit int) ([]byte, fs.FileInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > limit {
		return nil, before, fmt.Errorf("larger than %d bytes", limit)
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

// SameContent reports whether two FileInfos are of the same file with the same size and modification time.
func SameContent(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// DecodeYAML decodes one YAML document into the struct that into points to. Unknown keys are errors. The library panics on
// some documents, such as a list that is only a tag; that is an error here.
func DecodeYAML(content []byte, into any) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("invalid YAML: possibly a tag or an anchor in place of a value")
		}
	}()
	return yaml.NewDecoder(bytes.NewReader(content), yaml.Strict()).Decode(into)
}

// WithoutPath removes the file's name from an error. A secret that was set in place of a file name must not be
// logged.
func WithoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
