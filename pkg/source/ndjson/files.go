package ndjson

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/lines"
)

// file is one file of the folder, open until the source is closed.
type file struct {
	name     string   // relative to the folder, with slashes
	origin   *os.File // in the folder
	spool    *os.File // the text of a file whose content is something else, else nil
	size     int64    // of origin when it was opened
	modified time.Time
	expand   bool // look for Bundles among its lines
	expanded bool // Bundles were replaced by their entries
}

// openFiles opens every file that was found. Those that cannot be opened are broken.
func openFiles(found []lines.File) (files []*file, broken []lines.BrokenFile, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.close())
			}
			files = nil
		}
	}()
	for _, one := range found {
		origin, err := one.Open()
		if closed := new(lines.BrokenError); errors.As(err, &closed) {
			broken = append(broken, lines.BrokenFile{Name: one.Name(), Err: closed})
			continue
		}
		if err != nil {
			return files, nil, err
		}
		f := &file{name: one.Name(), origin: origin}
		files = append(files, f)
		info, err := origin.Stat()
		if err != nil {
			return files, nil, err
		}
		f.size, f.modified = info.Size(), info.ModTime()
	}
	if len(files) > maxFiles {
		return files, nil, fmt.Errorf("more than %d files", maxFiles)
	}
	return files, broken, nil
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
	return fmt.Errorf("%w: %s changed after it was indexed; a restart reads it again", export.ErrUnavailable, f.name)
}

// text returns the text of the file. If it is not the content of the file, it is also written to an unlinked file in
// spoolDir, so that lines can be read from the middle.
func (f *file) text(spoolDir string, maxLine int) (lines.Text, error) {
	text, err := lines.Open(f.name, maxLine, f.expand, func() io.Reader {
		return lines.FromFile(io.NewSectionReader(f.origin, 0, f.size))
	})
	if err != nil || !text.Changed {
		return text, err
	}
	f.expanded = text.Expanded
	if f.spool, err = os.CreateTemp(spoolDir, "sluice-ndjson-*"); err != nil {
		return lines.Text{}, errors.Join(fmt.Errorf("spool %s: %w", f.name, err), text.Close())
	}
	// The system frees an unlinked file when the process ends, even if it is killed.
	if err := os.Remove(f.spool.Name()); err != nil {
		return lines.Text{}, errors.Join(fmt.Errorf("spool %s: %w", f.name, err), text.Close())
	}
	text.Reader = io.TeeReader(text.Reader, &spool{to: f.spool, maxLine: maxLine})
	return text, nil
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
