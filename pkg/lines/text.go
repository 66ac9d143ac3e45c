package lines

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"github.com/sluice-fhir/sluice/pkg/jsonvalues"
)

// BrokenError is the reason why the rest of a file cannot be read: no permission, broken compression, or a Bundle that is
// not JSON. It has no content of the file.
type BrokenError struct{ error }

func (e *BrokenError) Unwrap() error { return e.error }

// Text is the text of a file as NDJSON.
type Text struct {
	io.Reader
	io.Closer
	Changed  bool // it is not the same as the content of the file
	Expanded bool // it has the entries of Bundles instead of the Bundles
	Entries  bool // all its lines are entries of Bundles, or of another JSON document, so they have no line numbers

	bases *bases // complete at the end of the text; nil if it is not expanded
}

// peeked is the size of the beginning of a text by which its form is recognized.
const peeked = 64 << 10

// Open returns the text of a file: decompressed if it begins like gzip, whatever its name is, and if it is a Bundle, a
// JSON array, or JSON over several lines, with each resource on a line of its own. With expand it also looks for Bundles
// that are lines among other lines; without, such a line is part of the text. content returns the content from its
// beginning, and is called again for a Bundle, whose full URLs are read first, and to verify a compressed file. Errors of
// content are returned unchanged; all others are a *BrokenError.
//
// A Bundle becomes the resources of its entries. References to the full URL of an entry become Type/id, and an entry
// without an id has the one of its full URL. An entry that deletes, and one that cannot be applied, is a line with a
// Bundle of that entry (Deletion).
//
// The caller closes the text before the file.
func Open(name string, maxLine int, expand bool, content func() io.Reader) (Text, error) {
	open := io.NopCloser(nil)
	text, zipped, err := decompress(content())
	if err != nil {
		return Text{}, err
	}
	start, err := text.Peek(peeked)
	if len(start) == 0 && err != nil && !errors.Is(err, io.EOF) { // else the next read returns it
		return Text{}, err
	}
	if zipped {
		if err := verify(content()); err != nil {
			return Text{}, err
		}
	}
	start = bytes.TrimLeft(bytes.TrimPrefix(start, []byte(mark)), " \t\r\n")
	switch {
	case isDocument(name, start):
		return openDocument(maxLine, func() (*bufio.Reader, error) {
			again, _, err := decompress(content())
			return again, err
		})
	case expand, mayBeBundle(firstLine(start)):
		e := &expander{from: text, maxLine: maxLine}
		return Text{e, open, true, true, mayBeBundle(firstLine(start)), &e.bases}, nil
	}
	return Text{text, open, zipped, false, false, nil}, nil
}

// mark is the byte order mark.
const mark = "\ufeff"

// decompress returns the content, decompressed if it begins like gzip.
func decompress(content io.Reader) (text *bufio.Reader, zipped bool, err error) {
	text = bufio.NewReaderSize(content, peeked)
	magic, err := text.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return text, false, nil
	}
	unzipped, err := gzip.NewReader(text)
	if err != nil {
		return nil, false, broken("decompress", err)
	}
	return bufio.NewReaderSize(gunzip{unzipped}, peeked), true, nil
}

// verify returns an error if gzip finds the content damaged. A checksum is known only at the end, and what a damaged file
// holds before it may be resources with other values. A file that ends too early is not refused: it may be a download that
// was cut off. Damage by which the compressed data ends early cannot be told from that.
func verify(content io.Reader) error {
	text, _, err := decompress(content)
	if err == nil {
		_, err = io.Copy(io.Discard, text)
	}
	var corrupt flate.CorruptInputError
	var failed *ReadError
	if errors.Is(err, gzip.ErrChecksum) || errors.As(err, &corrupt) || errors.As(err, &failed) {
		return broken("decompress", err)
	}
	return nil // reading returns any other error
}

// gunzip marks the errors of decompression.
type gunzip struct{ *gzip.Reader }

func (g gunzip) Read(p []byte) (int, error) {
	n, err := g.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = broken("decompress", err)
	}
	return n, err
}

// broken returns err as a *BrokenError, unless the file itself could not be read.
func broken(act string, err error) error {
	if err == nil {
		return nil
	}
	var failed *ReadError
	if errors.As(err, &failed) {
		return err
	}
	if known := new(BrokenError); errors.As(err, &known) {
		return err
	}
	return &BrokenError{fmt.Errorf("%s: %w", act, err)}
}

// ReadError is an error of reading the content of a file.
type ReadError struct{ error }

func (e *ReadError) Unwrap() error { return e.error }

// FromFile marks the errors of r as those of the file.
func FromFile(r io.Reader) io.Reader { return fromFile{r} }

type fromFile struct{ io.Reader }

func (f fromFile) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &ReadError{err}
	}
	return n, err
}

// isDocument reports whether the text is to be read as JSON values that may have line breaks. start is its beginning,
// without white space.
func isDocument(name string, start []byte) bool {
	if len(start) == 0 || start[0] != '{' && start[0] != '[' {
		return false
	}
	first := firstLine(start)
	if len(first) < len(start) && len(bytes.TrimSpace(start[len(first):])) > 0 { // another line follows
		last := first[len(first)-1]
		return (last == '{' || last == '[' || last == ',') && !(start[0] == '{' && isLine(start[len(first):]))
	}
	return strings.HasSuffix(strings.TrimSuffix(strings.ToLower(name), ".gz"), ".json") || start[0] == '['
}

// isLine reports whether the text begins with a line of NDJSON: the line before it was cut off. In a document, something
// that is not an object follows an object.
func isLine(text []byte) bool {
	text = bytes.TrimLeft(text, " \t\r\n")
	line := firstLine(text)
	after := bytes.TrimLeft(text[len(line):], " \t\r\n")
	return bytes.HasPrefix(line, []byte("{")) && json.Valid(line) && (len(after) == 0 || after[0] == '{')
}

func firstLine(start []byte) []byte {
	line, _, _ := bytes.Cut(start, []byte{'\n'})
	return bytes.TrimRight(line, " \t\r")
}

// mayBeBundle is quick and true for every Bundle.
func mayBeBundle(line []byte) bool {
	if bytes.Contains(line, []byte(`"Bundle"`)) {
		return true
	}
	for { // or a letter of it is escaped
		_, after, escaped := bytes.Cut(line, []byte(`\u00`))
		if !escaped {
			return false
		}
		if len(after) > 0 && strings.IndexByte("467", after[0]) >= 0 {
			return true
		}
		line = after
	}
}

// expander replaces each line that is a Bundle by its entries.
type expander struct {
	from    *bufio.Reader
	maxLine int
	line    []byte // a line that is longer than the buffer
	bases   bases
	pending []byte
	err     error
}

func (e *expander) Read(p []byte) (int, error) {
	for len(e.pending) == 0 {
		if e.err != nil {
			return 0, e.err
		}
		before := e.bases.line
		if e.pending, e.err = e.next(); e.bases.line == before { // no entries
			e.bases.line += int64(bytes.Count(e.pending, []byte{'\n'}))
		}
	}
	n := copy(p, e.pending)
	e.pending = e.pending[n:]
	return n, nil
}

// next returns the next line, its entries, or a part of a line that is too long.
func (e *expander) next() ([]byte, error) {
	line, err := e.from.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		e.line = append(e.line[:0], line...)
		for errors.Is(err, bufio.ErrBufferFull) && len(e.line) < e.maxLine {
			line, err = e.from.ReadSlice('\n')
			e.line = append(e.line, line...)
		}
		line = e.line
		if errors.Is(err, bufio.ErrBufferFull) {
			return line, nil
		}
	}
	body := bytes.TrimSpace(bytes.TrimPrefix(line, []byte(mark)))
	if !mayBeBundle(body) {
		return line, err
	}
	again := func() *jsonvalues.Reader { return jsonvalues.NewReader(bytes.NewReader(body), len(body)) }
	whole := again()
	known, malformed := newScope(whole)
	if malformed != nil || known == nil || !whole.Ended() {
		return line, err // a resource, or a line that cannot be applied
	}
	var out bytes.Buffer
	_, malformed = eachEntry(again(), func(raw []byte, long bool) error { return known.write(&out, raw, long, &e.bases) })
	if malformed != nil {
		return line, err
	}
	return out.Bytes(), err
}
