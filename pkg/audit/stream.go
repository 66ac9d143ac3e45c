package audit

import (
	"fmt"
	"os"
)

// stream is a place that only goes forward: standard output.
type stream struct {
	to   *os.File
	torn bool // it ends with a part of a line
}

func newStream(to *os.File) (*stream, error) {
	own, err := duplicate(to)
	if err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	return &stream{to: own}, nil
}

// prepare ends what there is of a line. It can never be whole again, so the chain ends before it.
func (s *stream) prepare() (news string, anew bool, err error) {
	if !s.torn {
		return "", false, nil
	}
	if _, err := s.to.Write([]byte{'\n'}); err != nil {
		return "", false, fmt.Errorf("end a torn line: %w", err)
	}
	s.torn = false
	return "a line was written in part, and its chain ends before it", true, nil
}

func (s *stream) write(line []byte) error {
	if s.torn {
		return fmt.Errorf("a line before this one was written in part")
	}
	n, err := s.to.Write(line)
	s.torn = n > 0 && n < len(line)
	return err
}

func (s *stream) sync() error { return nil }

func (s *stream) close() error { return s.to.Close() }
