package lines

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// entry is an entry of a Bundle. Elements that do not matter here are absent.
type entry struct {
	FullURL  string          `json:"fullUrl"`
	Resource json.RawMessage `json:"resource"`
	Request  request         `json:"request"`
}

type request struct {
	Method string `json:"method"`
	URL    string `json:"url"`
}

// parse parses an entry, or the only one of a Bundle. It refuses keys that another parser could read otherwise.
func parse(raw json.RawMessage) (e entry, err error) {
	if err := fhir.CheckKeys(raw, "fullUrl", "resource", "request"); err != nil {
		return e, err
	}
	return e, json.Unmarshal(raw, &e)
}

// UnmarshalJSON is for parse.
func (r *request) UnmarshalJSON(raw []byte) error {
	type plain request
	if err := fhir.CheckKeys(raw, "method", "url"); err != nil {
		return err
	}
	return json.Unmarshal(raw, (*plain)(r))
}

// ref returns the resource of a line, and whether the line has the id. If it has none, the id is that of the full URL, or
// of the URL of a PUT. A line that fhir.Scanner refuses for another reason has no ref: parsers may differ about it.
func (e entry) ref(line []byte) (ref fhir.Ref, owned bool) {
	facts, err := new(fhir.Scanner).Scan(line)
	if err == nil {
		return fhir.Ref{Type: facts.Type, ID: facts.ID}, true
	}
	var present struct{ ID json.RawMessage }
	if !errors.Is(err, fhir.ErrNoID) || json.Unmarshal(line, &present) != nil || len(present.ID) > 0 {
		return fhir.Ref{}, true
	}
	ref.Type = facts.Type
	if uuid, found := strings.CutPrefix(e.FullURL, "urn:uuid:"); found {
		ref.ID = uuid
	} else if typ, id, _ := fhir.Classify(e.FullURL); typ == ref.Type {
		ref.ID = id
	}
	if typ, id, form := fhir.Classify(e.Request.URL); ref.ID == "" && e.Request.Method == http.MethodPut &&
		form == fhir.Local && typ == ref.Type {
		ref.ID = id
	}
	return ref, !fhir.IsID(ref.ID)
}

// applies reports whether the entry is a resource to take.
func (e entry) applies() bool {
	switch e.Request.Method {
	case "", http.MethodPost, http.MethodPut, http.MethodGet, http.MethodHead:
		return len(e.Resource) > 0
	}
	return false
}

// scope is the resources of a Bundle by full URL. A full URL of two entries names neither.
type scope map[string]string

// ambiguous replaces such a full URL: it is not a reference, so nothing else is taken for what it names.
const ambiguous = "urn:ambiguous"

// add adds the full URL of an entry.
func (s scope) add(raw json.RawMessage) {
	e, err := parse(raw)
	if err != nil || e.FullURL == "" || !e.applies() {
		return // write passes it on
	}
	if _, twice := s[e.FullURL]; twice || strings.ContainsRune(e.FullURL, '\uFFFD') { // or half a surrogate pair
		s[e.FullURL] = ambiguous
		return
	}
	s[e.FullURL] = ambiguous // unless its line is good
	if ref, _ := e.ref(compact(e.Resource)); fhir.IsType(ref.Type) && fhir.IsID(ref.ID) {
		s[e.FullURL] = ref.Type + "/" + ref.ID
	}
}

// write writes the line of an entry.
func (s scope) write(out *bytes.Buffer, raw json.RawMessage) {
	e, err := parse(raw)
	if err != nil || !e.applies() {
		out.WriteString(`{"resourceType":"Bundle","entry":[`)
		_ = json.Compact(out, raw) // it is valid
		out.WriteString("]}\n")
		return
	}
	body := compact(e.Resource)
	if ref, owned := e.ref(body); !owned {
		rest := body[1:]
		body = fmt.Appendf(nil, `{"id":%q`, ref.ID)
		if !bytes.Equal(rest, []byte("}")) {
			body = append(body, ',')
		}
		body = append(body, rest...)
	}
	body, _ = fhir.Resolve(nil, body, fhir.Facts{}, func(text []byte, _ fhir.Form, _ bool) string {
		url, _, _ := strings.Cut(string(text), "#")
		if literal, found := s[url]; found {
			return literal
		}
		url, _, _ = strings.Cut(url, "/_history/")
		return s[url]
	})
	out.Write(body)
	out.WriteByte('\n')
}

// compact returns the JSON on one line.
func compact(raw json.RawMessage) []byte {
	var line bytes.Buffer
	_ = json.Compact(&line, raw) // it is valid
	return line.Bytes()
}

// Deletion returns the resource that a line deletes: a Bundle of one entry, as Open writes it. It returns false for a
// Bundle with another entry, which cannot be applied.
func Deletion(line []byte) (fhir.Ref, bool) {
	var entries []json.RawMessage
	bundle, err := eachEntry(json.NewDecoder(bytes.NewReader(line)), func(raw json.RawMessage) error {
		entries = append(entries, raw)
		return nil
	})
	if err != nil || !bundle || len(entries) != 1 {
		return fhir.Ref{}, false
	}
	e, err := parse(entries[0])
	if err != nil || e.Request.Method != http.MethodDelete {
		return fhir.Ref{}, false
	}
	typ, id, form := fhir.Classify(e.Request.URL)
	return fhir.Ref{Type: typ, ID: id}, form == fhir.Local
}

// eachEntry calls yield for each entry of the object that the decoder is at, and reports whether it is a Bundle. A Bundle
// with a key that another parser could read otherwise is an error at its end.
func eachEntry(dec *json.Decoder, yield func(json.RawMessage) error) (bundle bool, err error) {
	start, err := dec.Token()
	if err != nil {
		return false, err
	}
	if start != json.Delim('{') {
		return false, errNoObject
	}
	seen, odd := map[string]bool{}, false
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return false, err
		}
		key, _ := token.(string)
		for _, name := range []string{"resourceType", "entry"} {
			if strings.EqualFold(key, name) {
				odd = odd || seen[name] || key != name
				seen[name] = true
			}
		}
		odd = odd || strings.ContainsAny(key, "\x00\uFFFD") // the decoder replaces half a surrogate pair
		if key == "entry" {
			if err := eachElement(dec, yield); err != nil {
				return false, err
			}
			continue
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return false, err
		}
		if key == "resourceType" {
			var typ string
			bundle = json.Unmarshal(value, &typ) == nil && typ == "Bundle" || bundle
		}
	}
	if bundle && odd {
		return bundle, errOddKey
	}
	_, err = dec.Token()
	return bundle, err
}

// eachElement calls yield for each element of the array that the decoder is at.
func eachElement(dec *json.Decoder, yield func(json.RawMessage) error) error {
	start, err := dec.Token()
	if err != nil {
		return err
	}
	if start != json.Delim('[') {
		return errNoArray
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if err := yield(raw); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

var (
	errNoObject = errors.New("not a JSON object")
	errNoBundle = errors.New("not a Bundle")
	errNoArray  = errors.New("the entries of a Bundle are not an array")
	errOddKey   = errors.New("a key of a Bundle is duplicate, or one that another parser could read otherwise")
	errTooLong  = errors.New("an entry is too long")
)

// document converts a text of JSON values to NDJSON. Reading it twice keeps the memory flat: references may precede the
// entry whose full URL they name.
type document struct {
	open   func() (*bufio.Reader, error)
	most   int64   // bytes between two values
	values []scope // nil for a value that is not a Bundle
	reader *io.PipeReader
	done   chan struct{}
}

// openDocument reads the full URLs of every Bundle and returns the text.
func openDocument(maxLine int, open func() (*bufio.Reader, error)) (Text, error) {
	d := &document{open: open, most: 2*int64(maxLine) + 1<<20, done: make(chan struct{})}
	err := d.each(func(dec *json.Decoder, read *bounded) error {
		known := scope{}
		bundle, err := eachEntry(dec, func(raw json.RawMessage) error { read.n = 0; known.add(raw); return nil })
		if !bundle {
			known = nil
		}
		d.values = append(d.values, known)
		return err
	})
	if err != nil {
		return Text{}, broken("read a JSON document", err)
	}
	reader, writer := io.Pipe()
	d.reader = reader
	go func() {
		defer close(d.done)
		writer.CloseWithError(broken("read a JSON document", d.write(writer)))
	}()
	return Text{Reader: reader, Closer: d, Changed: true, Expanded: true, Entries: true}, nil
}

// Close stops the conversion.
func (d *document) Close() error {
	err := d.reader.Close()
	<-d.done
	return err
}

// write writes the lines.
func (d *document) write(w io.Writer) error {
	var out bytes.Buffer
	n := 0
	flush := func() error {
		_, err := w.Write(out.Bytes())
		out.Reset()
		return err
	}
	return d.each(func(dec *json.Decoder, read *bounded) error {
		if n == len(d.values) {
			return &ReadError{errors.New("the file changed while it was read")}
		}
		known := d.values[n]
		n++
		if known != nil {
			_, err := eachEntry(dec, func(raw json.RawMessage) error { read.n = 0; known.write(&out, raw); return flush() })
			return err
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if err := json.Compact(&out, raw); err != nil {
			return err
		}
		out.WriteByte('\n')
		return flush()
	})
}

// each calls value with the decoder at each value of the text, or at each element of a value that is an array.
func (d *document) each(value func(*json.Decoder, *bounded) error) error {
	text, err := d.open()
	if err != nil {
		return err
	}
	if start, _ := text.Peek(len(mark)); string(start) == mark {
		if _, err := text.Discard(len(mark)); err != nil {
			return err
		}
	}
	read := &bounded{from: text, most: d.most}
	dec := json.NewDecoder(read)
	for {
		read.n = 0
		next, err := peekValue(dec, text)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if next != '[' {
			if err := value(dec, read); err != nil {
				return syntax(err)
			}
			continue
		}
		if _, err := dec.Token(); err != nil {
			return syntax(err)
		}
		for dec.More() {
			read.n = 0
			if err := value(dec, read); err != nil {
				return syntax(err)
			}
		}
		if _, err := dec.Token(); err != nil {
			return syntax(err)
		}
	}
}

// peekValue returns the first byte of the decoder's next value, io.EOF at the end.
func peekValue(dec *json.Decoder, text *bufio.Reader) (byte, error) {
	var c [1]byte
	for buffered := dec.Buffered(); ; {
		if n, _ := buffered.Read(c[:]); n == 0 {
			break
		}
		if !isSpace(c[0]) {
			return c[0], nil
		}
	}
	for {
		ahead, err := text.Peek(1)
		if len(ahead) == 0 {
			return 0, err
		}
		if !isSpace(ahead[0]) {
			return ahead[0], nil
		}
		if _, err := text.Discard(1); err != nil {
			return 0, err
		}
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// syntax replaces the decoder's errors, which quote the text.
func syntax(err error) error {
	var wrong *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("not valid JSON at byte %d", wrong.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// bounded is a reader that fails when more bytes than most are read without a value in between. It drops white space
// between tokens, because the decoder reads all of it again for each piece that it gets.
type bounded struct {
	from    *bufio.Reader
	n, most int64
	quoted  bool // inside of a string
	escaped bool // after a backslash
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.n > b.most {
		return 0, errTooLong
	}
	for {
		n, err := b.from.Read(p)
		kept := 0
		for _, c := range p[:n] {
			switch {
			case b.escaped:
				b.escaped = false
			case b.quoted:
				b.escaped = c == '\\'
				b.quoted = c != '"'
			case c == '"':
				b.quoted = true
			case isSpace(c):
				continue
			}
			p[kept] = c
			kept++
		}
		b.n += int64(kept)
		if kept > 0 || err != nil || len(p) == 0 {
			return kept, err
		}
	}
}
