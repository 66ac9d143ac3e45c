package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sluice-fhir/sluice/pkg/platform/filelock"
)

type handle interface {
	io.ReaderAt
	io.Writer
	Truncate(size int64) error
	Sync() error
	Stat() (fs.FileInfo, error)
	Close() error
}

// opener opens or creates the file at the path for reading and appending, and locks it.
type opener func(path string) (handle, error)

func openHandle(path string) (handle, error) {
	// Only regular files can be truncated, and opening a pipe would block.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := filelock.Lock(file); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another process writes it: %w", path, err), file.Close())
	}
	return file, nil
}

// file is a sink that is truncated to its last complete line after an error.
type file struct {
	path    string
	durable bool // sync calls fsync
	open    opener
	accept  func(last []byte) error // checks the last line of a file before it is continued

	handle handle
	info   fs.FileInfo // of the handle
	size   int64       // end of the last complete line
	synced int64       // end of the last durable line
	dirty  bool        // there may be bytes after size
}

// continueFile opens the file and continues its chain.
func (l *Log) continueFile(cfg Config, handles opener) error {
	f := &file{path: cfg.Path, durable: cfg.Sync, open: handles}
	f.accept = func(last []byte) error {
		at, sum, err := l.hasher.open(last)
		if err != nil {
			return fmt.Errorf("last line: %w; rename the file to begin another", err)
		}
		if l.sink == nil { // after a rotation the chain of the previous file continues
			l.at = at.next(sum)
		}
		return nil
	}
	notice, err := f.reopen()
	if err != nil {
		return err
	}
	l.sink = f
	l.addNotice(notice)
	return nil
}

// reopen opens the file at the path, replaces the current handle, if any, and cuts off a torn line. It does not change
// a file that is not accepted.
func (f *file) reopen() (notice string, err error) {
	opened, err := f.open(f.path)
	if err != nil {
		return "", err
	}
	notice, err = f.take(opened)
	if err != nil {
		return "", errors.Join(fmt.Errorf("continue %s: %w", f.path, err), opened.Close())
	}
	previous := f.handle
	f.handle = opened
	if previous != nil {
		if err := previous.Close(); err != nil {
			return notice, fmt.Errorf("close the previous file: %w", err)
		}
	}
	return notice, nil
}

func (f *file) take(opened handle) (notice string, err error) {
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
		notice = fmt.Sprintf("an incomplete line of %d bytes was cut off", info.Size()-end)
	}
	if f.durable {
		if err := syncFolder(filepath.Dir(f.path)); err != nil {
			return "", err
		}
	}
	f.info, f.size, f.synced, f.dirty = info, end, end, false
	return notice, nil
}

// syncFolder makes the directory entry of a new file durable.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// prepare opens a new file after the current one was renamed (rotated).
func (f *file) prepare() (notice string, newChain bool, err error) {
	if f.dirty {
		if err := f.cut(); err != nil {
			return "", false, err
		}
	}
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, f.info) {
		notice, err = f.reopen()
		return notice, false, err
	}
	if err != nil {
		return "", false, err
	}
	if info.Size() != f.size {
		notice = fmt.Sprintf("another program changed the file: it has %d bytes instead of %d", info.Size(), f.size)
		f.size, f.synced = info.Size(), info.Size()
	}
	return notice, false, nil
}

func (f *file) write(line []byte) error {
	if f.dirty {
		return errors.New("the previous line was written only in part")
	}
	if _, err := f.handle.Write(line); err != nil {
		f.dirty = true
		return errors.Join(err, f.cut())
	}
	f.size += int64(len(line))
	return nil
}

// sync cuts off the new lines when fsync fails: their state on disk is unknown, and another fsync may report success.
func (f *file) sync() error {
	if f.durable && f.size > f.synced {
		if err := f.handle.Sync(); err != nil {
			f.size, f.dirty = f.synced, true
			return errors.Join(err, f.cut())
		}
	}
	f.synced = f.size
	return nil
}

func (f *file) cut() error {
	if err := f.handle.Truncate(f.size); err != nil {
		return fmt.Errorf("cut off an incomplete line: %w", err)
	}
	f.dirty = false
	return nil
}

func (f *file) close() error { return f.handle.Close() }

// lastLine returns the last complete line of a log of the given size without its line break, nil if there is none, and
// its end. It reads at most 2*LineLimit bytes.
func lastLine(from io.ReaderAt, size int64) (line []byte, end int64, err error) {
	begin := max(0, size-2*LineLimit)
	tail := make([]byte, size-begin)
	if _, err := from.ReadAt(tail, begin); err != nil && !(errors.Is(err, io.EOF) && len(tail) == 0) {
		return nil, 0, err
	}
	cut := bytes.LastIndexByte(tail, '\n') + 1
	torn, whole := tail[cut:], tail[:cut]
	if !tornLine(torn) || cut == 0 && begin > 0 {
		return nil, 0, errors.New("not an audit log: unexpected data at the end")
	}
	if cut == 0 {
		return nil, 0, nil
	}
	whole = whole[:cut-1]
	return whole[bytes.LastIndexByte(whole, '\n')+1:], begin + int64(cut), nil
}

// tornLine reports whether text can be the result of an interrupted write. It prevents the truncation of
// other files that were configured by mistake.
func tornLine(text []byte) bool {
	known := text[:min(len(text), len(resourceLineBegin))]
	return len(text) < LineLimit &&
		(bytes.HasPrefix([]byte(resourceLineBegin), known) || len(bytes.Trim(text, "\x00")) == 0)
}

// stream is a sink that cannot be truncated: standard output.
type stream struct {
	to   *os.File
	torn bool // it ends with an incomplete line
}

// newStream makes the process ignore SIGPIPE, so that a write to a closed standard output returns an error. By default Go
// ends the program.
func newStream(to *os.File) *stream {
	signal.Ignore(syscall.SIGPIPE)
	return &stream{to: to}
}

// prepare ends an incomplete line. The line stays invalid, so its chain ends before it.
func (s *stream) prepare() (notice string, newChain bool, err error) {
	if !s.torn {
		return "", false, nil
	}
	if _, err := s.to.Write([]byte{'\n'}); err != nil {
		return "", false, fmt.Errorf("end a torn line: %w", err)
	}
	s.torn = false
	return "a line was written only in part, and its chain ends before it", true, nil
}

func (s *stream) write(line []byte) error {
	if s.torn {
		return errors.New("the previous line was written only in part")
	}
	n, err := s.to.Write(line)
	s.torn = n > 0 && n < len(line)
	return err
}

func (s *stream) sync() error { return nil }

func (s *stream) close() error { return nil } // standard output belongs to the process
