package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// handle is an open file that this process has locked.
type handle interface {
	io.ReaderAt
	io.Writer
	Truncate(size int64) error
	Sync() error
	Stat() (fs.FileInfo, error)
	Close() error
}

// opener opens the file at the path for reading and appending, makes it when it is not there, and locks it.
type opener func(path string) (handle, error)

func openHandle(path string) (handle, error) {
	// Only regular files can be cut back, and opening a pipe would wait for a reader.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: it is no regular file", path)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another process writes it: %w", path, err), file.Close())
	}
	return file, nil
}

// file is a place that can be cut back to its last whole line.
type file struct {
	path    string
	durable bool // whether sync means something
	open    opener
	accept  func(last []byte) error // whether a file may be continued whose last line that is

	handle handle
	info   fs.FileInfo // which file the handle is of
	size   int64       // where the last whole line ends
	sure   int64       // where the last line ends that sync has made sure of
	dirty  bool        // there may be something behind size
}

// continueFile makes the log one that goes on where the file ends.
func (l *Log) continueFile(cfg Config, handles opener) error {
	f := &file{path: cfg.Path, durable: cfg.Sync, open: handles}
	f.accept = func(last []byte) error {
		at, sum, err := l.hashes.open(last)
		if err != nil {
			return fmt.Errorf("%w, its last line; rename the file to begin another", err)
		}
		if l.place == nil { // after a rotation the chain goes on from the file before
			l.at = at.after(sum)
		}
		return nil
	}
	news, err := f.reopen()
	if err != nil {
		return err
	}
	l.place = f
	l.tell(news)
	return nil
}

// reopen opens the file at the path in place of the one that is open, if any, and cuts off a torn line. A file
// that is not accepted stays as it is.
func (f *file) reopen() (news string, err error) {
	opened, err := f.open(f.path)
	if err != nil {
		return "", err
	}
	news, err = f.take(opened)
	if err != nil {
		return "", errors.Join(fmt.Errorf("continue %s: %w", f.path, err), opened.Close())
	}
	if before := f.handle; before != nil {
		f.handle = opened
		if err := before.Close(); err != nil {
			return news, fmt.Errorf("close the file before: %w", err)
		}
	}
	f.handle = opened
	return news, nil
}

func (f *file) take(opened handle) (news string, err error) {
	info, err := opened.Stat()
	if err != nil {
		return "", err
	}
	last, end, err := lastLine(opened, info.Size())
	if err != nil {
		return "", err
	}
	if last != nil {
		if err := f.accept(last); err != nil {
			return "", err
		}
	}
	if end < info.Size() {
		if err := opened.Truncate(end); err != nil {
			return "", err
		}
		news = fmt.Sprintf("a line of which only %d bytes were written was cut off", info.Size()-end)
	}
	if f.durable {
		if err := syncFolder(filepath.Dir(f.path)); err != nil {
			return "", err
		}
	}
	f.info, f.size, f.sure, f.dirty = info, end, end, false
	return news, nil
}

// syncFolder makes sure of the name of a new file.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// prepare goes on in a new file when the one that is open is not at its path any more: it was rotated away.
func (f *file) prepare() (news string, anew bool, err error) {
	if f.dirty {
		if err := f.cut(); err != nil {
			return "", false, err
		}
	}
	there, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(there, f.info) {
		news, err = f.reopen()
		return news, false, err
	}
	if err != nil {
		return "", false, err
	}
	if there.Size() != f.size {
		news = fmt.Sprintf("somebody else has changed the file: it has %d bytes in place of %d", there.Size(), f.size)
		f.size, f.sure = there.Size(), there.Size()
	}
	return news, false, nil
}

func (f *file) write(line []byte) error {
	if f.dirty {
		return errors.New("a line before this one was written in part")
	}
	if _, err := f.handle.Write(line); err != nil {
		f.dirty = true
		return errors.Join(err, f.cut())
	}
	f.size += int64(len(line))
	return nil
}

// sync cuts the lines off that it cannot make sure of: after a failed fsync nobody knows what the disk has, and the
// next one would report nothing.
func (f *file) sync() error {
	if f.durable && f.size > f.sure {
		if err := f.handle.Sync(); err != nil {
			f.size, f.dirty = f.sure, true
			return errors.Join(err, f.cut())
		}
	}
	f.sure = f.size
	return nil
}

func (f *file) cut() error {
	if err := f.handle.Truncate(f.size); err != nil {
		return fmt.Errorf("cut off what is no whole line: %w", err)
	}
	f.dirty = false
	return nil
}

func (f *file) close() error {
	return f.handle.Close()
}

// lastLine returns the last whole line of a log of that size, without its line break, nil when there is none, and where
// it ends. It reads two lines' length at most.
func lastLine(from io.ReaderAt, size int64) (line []byte, end int64, err error) {
	begin := max(0, size-2*LineLimit)
	tail := make([]byte, size-begin)
	if _, err := from.ReadAt(tail, begin); err != nil && !(errors.Is(err, io.EOF) && len(tail) == 0) {
		return nil, 0, err
	}
	cut := bytes.LastIndexByte(tail, '\n') + 1
	torn, whole := tail[cut:], tail[:cut]
	if !tornLine(torn) || cut == 0 && begin > 0 {
		return nil, 0, errors.New("it is no audit log: its end is no part of a line of one")
	}
	if cut == 0 {
		return nil, 0, nil
	}
	whole = whole[:cut-1]
	return whole[bytes.LastIndexByte(whole, '\n')+1:], begin + int64(cut), nil
}

// tornLine reports whether a write of a line that was interrupted can have left this. It keeps a file that is named by
// mistake from being cut.
func tornLine(text []byte) bool {
	known := text[:min(len(text), len(resourceLineBegin))]
	return len(text) < LineLimit &&
		(bytes.HasPrefix([]byte(resourceLineBegin), known) || len(bytes.Trim(text, "\x00")) == 0)
}
