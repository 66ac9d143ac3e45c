package ndjson

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/lines"
)

// file is one file of the folder, open until the source is closed.
type file struct {
	name     string   // relative to the folder, with slashes
	origin   *os.File // in the folder
	spool    *os.File // the decompressed text of a gzipped file, else nil
	size     int64    // of origin when it was opened
	modified time.Time
}

// openFiles opens every file of the folder, sorted by name.
func openFiles(dir string) (files []*file, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.close())
			}
			files = nil
		}
	}()
	found, err := lines.InFolder(dir)
	if err != nil {
		return nil, err
	}
	for _, one := range found {
		name, err := filepath.Rel(dir, one.Path)
		if err != nil {
			return files, err
		}
		origin, err := os.Open(one.Path)
		if err != nil {
			return files, err
		}
		f := &file{name: filepath.ToSlash(name), origin: origin}
		files = append(files, f)
		info, err := origin.Stat()
		if err != nil {
			return files, err
		}
		f.size, f.modified = info.Size(), info.ModTime()
	}
	if len(files) > maxFiles {
		return files, fmt.Errorf("more than %d files", maxFiles)
	}
	return files, nil
}

func (f *file) close() error {
	err := f.origin.Close()
	if f.spool != nil {
		err = errors.Join(err, f.spool.Close())
	}
	return err
}

// unchanged returns an error when the file was changed after it was opened.
func (f *file) unchanged() error {
	info, err := f.origin.Stat()
	if err != nil {
		return fmt.Errorf("%w: stat %s: %w", export.ErrUnavailable, f.name, err)
	}
	if info.Size() != f.size || !info.ModTime().Equal(f.modified) {
		return f.changed()
	}
	return nil
}

func (f *file) changed() error {
	return fmt.Errorf("%w: %s changed after it was indexed", export.ErrUnavailable, f.name)
}

// text returns the text of the file. The text of a gzipped file is also written to an unlinked file in spoolDir.
func (f *file) text(spoolDir string) (io.Reader, error) {
	text, err := lines.Text(f.name, f.origin)
	if err != nil || !strings.HasSuffix(f.name, ".gz") {
		return text, err
	}
	if f.spool, err = os.CreateTemp(spoolDir, "sluice-ndjson-*"); err != nil {
		return nil, fmt.Errorf("spool %s: %w", f.name, err)
	}
	// The system frees an unlinked file when the process ends, even if it is killed.
	if err := os.Remove(f.spool.Name()); err != nil {
		return nil, fmt.Errorf("spool %s: %w", f.name, err)
	}
	return io.TeeReader(text, f.spool), nil
}

// readAt reads len(p) bytes of the file's text.
func (f *file) readAt(p []byte, offset int64) error {
	text := f.spool
	if text == nil {
		text = f.origin
	}
	switch _, err := text.ReadAt(p, offset); {
	case errors.Is(err, io.EOF):
		return f.changed()
	case err != nil:
		return fmt.Errorf("%w: read %s: %w", export.ErrUnavailable, f.name, err)
	}
	return nil
}
