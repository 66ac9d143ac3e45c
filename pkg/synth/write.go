package synth

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// partialName is the folder that files are written to until the population is complete. It also excludes a second run:
// only one run can create it.
const partialName = ".synth.partial"

// output is the set of files being written: one per type, rolled over when the next line would make it too big.
type output struct {
	dir     string
	partial string
	limit   int64
	files   [kinds]outputFile
	names   []string // every file, in the order of creation
	bytes   int64
}

// outputFile is the file that a type is being written to. It is open when handle is not nil.
type outputFile struct {
	handle *os.File
	buffer *bufio.Writer // gathers the small writes of the rare types; large ones pass through
	size   int64
	rolled int // files of the type made before this one
}

// newOutput creates the folder, and in it the folder for unfinished files.
func newOutput(dir string, limit int64) (*output, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the output folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the output folder: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".ndjson.gz") {
			return nil, fmt.Errorf("%s already has %s: choose an empty folder, populations are not mixed", dir, name)
		}
	}
	out := &output{dir: dir, partial: filepath.Join(dir, partialName), limit: limit}
	if err := os.Mkdir(out.partial, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("%s exists: another run is in progress, or one was killed; "+
				"in the latter case remove it", out.partial)
		}
		return nil, fmt.Errorf("make the folder for unfinished files: %w", err)
	}
	return out, nil
}

// write appends whole lines to the type's file. A line is never split between two files, so a line longer than the
// limit gets its own file.
func (o *output) write(k kind, lines []byte) error {
	for len(lines) > 0 {
		file := &o.files[k]
		room := o.limit - file.size
		n := len(lines)
		if int64(n) > room {
			n = bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
		}
		if n == 0 && file.size > 0 {
			if err := o.roll(k); err != nil {
				return err
			}
			continue
		}
		if n == 0 {
			n = bytes.IndexByte(lines, '\n') + 1
		}
		if err := o.append(k, lines[:n]); err != nil {
			return err
		}
		lines = lines[n:]
	}
	return nil
}

// append adds a piece of a line, or whole lines, to the type's current file, regardless of its size.
func (o *output) append(k kind, piece []byte) error {
	file := &o.files[k]
	if file.handle == nil {
		if err := o.create(k); err != nil {
			return err
		}
	}
	n, err := file.buffer.Write(piece)
	file.size += int64(n)
	o.bytes += int64(n)
	if err != nil {
		return fmt.Errorf("write %s: %w", file.handle.Name(), err)
	}
	return nil
}

func (o *output) create(k kind) error {
	file := &o.files[k]
	name := k.String() + ".ndjson"
	if file.rolled > 0 {
		name = fmt.Sprintf("%s.%03d.ndjson", k, file.rolled)
	}
	handle, err := os.OpenFile(filepath.Join(o.partial, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("create an output file: %w", err)
	}
	file.handle = handle
	if file.buffer == nil {
		file.buffer = bufio.NewWriterSize(handle, 64<<10)
	} else {
		file.buffer.Reset(handle)
	}
	o.names = append(o.names, name)
	return nil
}

// roll closes the type's file, so that the next write makes a new one.
func (o *output) roll(k kind) error {
	file := &o.files[k]
	if file.handle == nil {
		return nil
	}
	if err := errors.Join(file.buffer.Flush(), file.handle.Close()); err != nil {
		file.handle = nil
		return fmt.Errorf("close the %s file: %w", k, err)
	}
	file.handle = nil
	file.size = 0
	file.rolled++
	return nil
}

// publish closes every file and moves them to their final names. The Patient files move last: a folder without
// Patient.ndjson is not a population, so even a kill between the moves leaves none that looks complete.
func (o *output) publish() error {
	for k := range kinds {
		if err := o.roll(k); err != nil {
			return errors.Join(err, o.discard())
		}
	}
	var order, last []string
	for _, name := range o.names {
		if strings.HasPrefix(name, patientKind.String()+".") {
			last = append(last, name)
		} else {
			order = append(order, name)
		}
	}
	order = append(order, last...)
	for done, name := range order {
		if err := os.Rename(filepath.Join(o.partial, name), filepath.Join(o.dir, name)); err != nil {
			err = fmt.Errorf("move an output file to its name: %w", err)
			for _, moved := range order[:done] {
				err = errors.Join(err, os.Remove(filepath.Join(o.dir, moved)))
			}
			return errors.Join(err, o.discard())
		}
	}
	if err := os.Remove(o.partial); err != nil {
		return fmt.Errorf("remove the folder for unfinished files: %w", err)
	}
	return nil
}

// discard closes and removes all files. It ignores errors of the closes, because the contents are not needed.
func (o *output) discard() error {
	for k := range kinds {
		if handle := o.files[k].handle; handle != nil {
			_ = handle.Close()
			o.files[k].handle = nil
		}
	}
	if err := os.RemoveAll(o.partial); err != nil {
		return fmt.Errorf("remove unfinished files: %w", err)
	}
	return nil
}
