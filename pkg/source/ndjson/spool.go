package ndjson

import (
	"bytes"
	"io"
)

// holeSize is the number of unneeded bytes in a row, the block of most file systems, that a spool does not write.
const holeSize = 4 << 10

// spool writes the text of a file to another file, each byte at its offset, except for runs of blank lines and the rest of
// lines that are too long: these are holes, which take no space. So the space is bounded by what may be served.
type spool struct {
	to      io.WriterAt
	maxLine int
	offset  int64 // of the next byte
	inLine  bool  // there was something other than white space since the last line break
	length  int   // of the current line
}

func (s *spool) Write(p []byte) (int, error) {
	written := 0
	flush := func(end, next int) (err error) {
		if written < end {
			_, err = s.to.WriteAt(p[written:end], s.offset+int64(written))
		}
		written = next
		return err
	}
	for i := 0; i < len(p); {
		from, needed := i, s.inLine && s.length < s.maxLine
		if s.inLine {
			end := bytes.IndexByte(p[i:], '\n') + 1
			if s.inLine = end == 0; s.inLine {
				end = len(p) - i
			}
			i, s.length = i+end, s.length+end
		} else {
			i = len(p) - len(bytes.TrimLeft(p[i:], " \t\r\n"))
			s.inLine, s.length = i < len(p), 0
		}
		if !needed && (i-from >= holeSize || i == len(p)) {
			if err := flush(from, i); err != nil {
				return 0, err
			}
		}
	}
	err := flush(len(p), len(p))
	s.offset += int64(len(p))
	return len(p), err
}
