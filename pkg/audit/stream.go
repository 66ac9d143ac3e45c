package audit

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// stream is a sink that cannot be truncated: standard output.
type stream struct {
	to   *os.File
	torn bool // it ends with an incomplete line
}

// newStream ignores SIGPIPE in this process: by default Go ends a program that writes to a closed standard output, and here
// the write must return an error.
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
