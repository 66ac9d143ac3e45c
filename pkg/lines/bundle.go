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
	"github.com/sluice-fhir/sluice/pkg/jsonvalues"
)

// entry is an entry of a Bundle. Elements that do not matter here are absent.
type entry struct {
	FullURL  string
	Resource []byte // a part of the entry
	Request  request
}

type request struct {
	Method string `json:"method"`
	URL    string `json:"url"`
}

// parse parses an entry. It refuses keys that another parser could read otherwise.
func parse(raw []byte) (e entry, err error) {
	values, err := fhir.Members(raw, "fullUrl", "resource", "request")
	if err != nil {
		return e, err
	}
	e.Resource = values[1]
	if len(values[0]) > 0 {
		err = json.Unmarshal(values[0], &e.FullURL)
	}
	if err == nil && len(values[2]) > 0 {
		err = json.Unmarshal(values[2], &e.Request)
	}
	return e, err
}

// UnmarshalJSON is for parse.
func (r *request) UnmarshalJSON(raw []byte) error {
	type plain request
	if _, err := fhir.Members(raw, "method", "url"); err != nil {
		return err
	}
	return json.Unmarshal(raw, (*plain)(r))
}

// target returns the resource that the URL names, not a version of it.
func (r request) target() (fhir.Ref, bool) {
	typ, id, form := fhir.Classify(r.URL)
	return fhir.Ref{Type: typ, ID: id}, form == fhir.Local && strings.TrimPrefix(r.URL, "/") == typ+"/"+id
}

// ref returns the resource of an entry, and whether it has the id. If it has none, the id is that of the full URL, or of
// the URL of a PUT. A resource that fhir.Scanner refuses for another reason has no ref: parsers may differ about it.
func (e entry) ref() (ref fhir.Ref, owned bool) {
	facts, err := new(fhir.Scanner).Scan(e.Resource)
	if err == nil {
		return fhir.Ref{Type: facts.Type, ID: facts.ID}, true
	}
	var present struct{ ID json.RawMessage }
	if !errors.Is(err, fhir.ErrNoID) || json.Unmarshal(e.Resource, &present) != nil || len(present.ID) > 0 {
		return fhir.Ref{}, true
	}
	ref.Type = facts.Type
	if uuid, found := strings.CutPrefix(e.FullURL, "urn:uuid:"); found {
		ref.ID = uuid
	} else if typ, id, _ := fhir.Classify(e.FullURL); typ == ref.Type {
		ref.ID = id
	}
	if put, named := e.Request.target(); ref.ID == "" && e.Request.Method == http.MethodPut && named && put.Type == ref.Type {
		ref.ID = put.ID
	}
	return ref, !fhir.IsID(ref.ID)
}

// applies reports whether the entry is a resource to take. A Bundle in an entry is data: as a line it would be carried out.
func (e entry) applies() bool {
	switch e.Request.Method {
	case "", http.MethodPost, http.MethodPut, http.MethodGet, http.MethodHead:
		return len(e.Resource) > 0 && !isBundle(e.Resource)
	}
	return false
}

// isBundle reports whether the resource is a Bundle.
func isBundle(resource []byte) bool {
	if !mayBeBundle(resource) {
		return false
	}
	values := jsonvalues.NewReader(bytes.NewReader(resource), len(resource))
	found, _ := eachEntry(values, func([]byte, bool) error { return nil }) // an error is that of the line
	return found.bundle
}

// scope is the resources of a Bundle by full URL. A full URL of two entries names neither.
type scope struct {
	form
	urls map[string]string
}

// ambiguous replaces such a full URL: it is not a reference, so nothing else is taken for what it names.
const ambiguous = "urn:ambiguous"

// bases are the bases of the full URLs of entries, such as https://ehr.example.org/fhir of the one
// https://ehr.example.org/fhir/Patient/1.
type bases struct {
	line  int64            // the last one that was written
	first map[string]int64 // the line of the first entry
}

// maxBases bounds the bases that are remembered of a file.
const maxBases = 100

// add adds the base of the entry of the next line.
func (b *bases) add(fullURL string) {
	b.line++
	typ, id, form := fhir.Classify(fullURL)
	if form != fhir.Foreign || id == "" || len(b.first) == maxBases {
		return
	}
	base, err := fhir.NewBases(strings.TrimSuffix(fullURL, typ+"/"+id))
	if err != nil {
		return
	}
	if b.first == nil {
		b.first = map[string]int64{}
	}
	if _, known := b.first[base[0]]; !known {
		b.first[base[0]] = b.line
	}
}

// newScope reads the value that is read next. It returns nil for one that is not a Bundle.
func newScope(values *jsonvalues.Reader) (*scope, error) {
	known := &scope{urls: map[string]string{}}
	var err error
	known.form, err = eachEntry(values, func(raw []byte, long bool) error { known.add(raw, long); return nil })
	if !known.bundle {
		return nil, err
	}
	return known, err
}

// add adds the full URL of an entry.
func (s *scope) add(raw []byte, long bool) {
	if long {
		return
	}
	e, err := parse(raw)
	if err != nil || e.FullURL == "" || !e.applies() {
		return // write passes it on
	}
	if _, twice := s.urls[e.FullURL]; twice || strings.ContainsRune(e.FullURL, '\uFFFD') { // or half a surrogate pair
		s.urls[e.FullURL] = ambiguous
		return
	}
	s.urls[e.FullURL] = ambiguous // unless its line is good
	if ref, _ := e.ref(); fhir.IsType(ref.Type) && fhir.IsID(ref.ID) {
		s.urls[e.FullURL] = ref.Type + "/" + ref.ID
	}
}

// write writes the line of an entry: the beginning of one that is too long. It adds the base of the full URL of a resource.
func (s *scope) write(w io.Writer, raw []byte, long bool, seen *bases) error {
	if long {
		seen.add("")
		return writeLine(w, raw)
	}
	e, err := parse(raw)
	if err != nil || s.history || !e.applies() {
		e.FullURL = ""
	}
	seen.add(e.FullURL)
	switch {
	case s.history:
		return writeLine(w, []byte(`{"resourceType":"Bundle","type":"history","entry":[`), raw, []byte("]}"))
	case err != nil || !e.applies():
		return writeLine(w, []byte(`{"resourceType":"Bundle","entry":[`), raw, []byte("]}"))
	}
	body := e.Resource
	if ref, owned := e.ref(); !owned {
		rest := body[1:]
		body = fmt.Appendf(nil, `{"id":%q`, ref.ID)
		if !bytes.Equal(rest, []byte("}")) {
			body = append(body, ',')
		}
		body = append(body, rest...)
	}
	body, _ = fhir.Resolve(nil, body, fhir.Facts{}, func(text []byte, _ fhir.Form, _ fhir.Expected) string {
		url, _, _ := strings.Cut(string(text), "#")
		if literal, found := s.urls[url]; found {
			return literal
		}
		url, _, _ = strings.Cut(url, "/_history/")
		return s.urls[url]
	})
	return writeLine(w, body)
}

// writeLine writes the parts of a line.
func writeLine(w io.Writer, parts ...[]byte) error {
	for _, part := range append(parts, []byte("\n")) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// Deletion returns the resource that a line deletes: a Bundle of one entry, as Open writes it. It returns false for a
// Bundle with another entry, which cannot be applied: a resource of a Bundle of the type history is not told to be newer
// than another one by its place, and a version of a resource is not the resource.
func Deletion(line []byte) (ref fhir.Ref, deletes bool) {
	n := 0
	values := jsonvalues.NewReader(bytes.NewReader(line), len(line))
	found, err := eachEntry(values, func(raw []byte, _ bool) error {
		n++
		e, err := parse(raw)
		if err == nil && e.Request.Method == http.MethodDelete {
			ref, deletes = e.Request.target()
		}
		return err
	})
	if err != nil || !found.bundle || found.history || n != 1 || !deletes {
		return fhir.Ref{}, false
	}
	return ref, true
}

// form is what a JSON value is.
type form struct {
	bundle  bool
	history bool // a Bundle of the type history, which has the newest version first (R4, RESTful API, history)
}

// eachEntry calls yield for each entry of the value that is read next, and returns its form. A Bundle with a key
// that another parser could read otherwise is an error at its end.
func eachEntry(values *jsonvalues.Reader, yield func(raw []byte, long bool) error) (found form, err error) {
	next, err := values.Peek()
	if err == nil && next != '{' {
		_, _, err = values.Value()
	}
	if err != nil || next != '{' {
		return found, err
	}
	seen, odd, noArray := map[string]bool{}, false, false
	err = values.Object(func(key string) error {
		for _, name := range []string{"resourceType", "type", "entry"} {
			if strings.EqualFold(key, name) {
				odd = odd || seen[name] || key != name
				seen[name] = true
			}
		}
		odd = odd || strings.ContainsAny(key, "\x00\uFFFD") // the decoder replaces half a surrogate pair
		next, err := values.Peek()
		if err != nil {
			return err
		}
		noArray = noArray || key == "entry" && next != '['
		if key == "entry" && next == '[' {
			return values.Array(func() error {
				raw, long, err := values.Value()
				if err != nil {
					return err
				}
				return yield(raw, long)
			})
		}
		value, _, err := values.Value()
		if err != nil {
			return err
		}
		var text string
		_ = json.Unmarshal(value, &text) // "" for another type
		found.bundle = found.bundle || key == "resourceType" && text == "Bundle"
		found.history = found.history || key == "type" && strings.EqualFold(text, "history")
		return nil
	})
	switch {
	case err != nil || !found.bundle:
	case noArray:
		err = errNoArray
	case odd:
		err = errOddKey
	}
	return found, err
}

var (
	errNoArray = errors.New("the entries of a Bundle are not an array")
	errOddKey  = errors.New("a key of a Bundle is duplicate, or one that another parser could read otherwise")
)

// document converts a text of JSON values to NDJSON. Reading it twice keeps the memory flat: references may precede the
// entry whose full URL they name, and the type of a Bundle may follow its entries.
type document struct {
	open   func() (*bufio.Reader, error)
	most   int
	values []*scope // nil for a value that is not a Bundle
	bases  bases
	reader *io.PipeReader
	done   chan struct{}
}

// around is the space in bytes for what is in an entry besides the resource.
const around = 64 << 10

// openDocument reads the full URLs of every Bundle and returns the text.
func openDocument(maxLine int, open func() (*bufio.Reader, error)) (Text, error) {
	d := &document{open: open, most: maxLine + around, done: make(chan struct{})}
	err := d.each(func(values *jsonvalues.Reader) error {
		known, err := newScope(values)
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
	return Text{Reader: reader, Closer: d, Changed: true, Expanded: true, Entries: true, bases: &d.bases}, nil
}

// Close stops the conversion.
func (d *document) Close() error {
	err := d.reader.Close()
	<-d.done
	return err
}

// write writes the lines.
func (d *document) write(w io.Writer) error {
	n := 0
	return d.each(func(values *jsonvalues.Reader) error {
		if n == len(d.values) {
			return &ReadError{errors.New("the file changed while it was read")}
		}
		known := d.values[n]
		n++
		if known != nil {
			_, err := eachEntry(values, func(raw []byte, long bool) error { return known.write(w, raw, long, &d.bases) })
			return err
		}
		value, _, err := values.Value()
		if err != nil {
			return err
		}
		d.bases.add("")
		return writeLine(w, value)
	})
}

// each calls value before each value of the text, or at each element of a value that is an array.
func (d *document) each(value func(*jsonvalues.Reader) error) error {
	text, err := d.open()
	if err != nil {
		return err
	}
	if start, _ := text.Peek(len(mark)); string(start) == mark {
		if _, err := text.Discard(len(mark)); err != nil {
			return err
		}
	}
	values := jsonvalues.NewReader(text, d.most)
	for {
		next, err := values.Peek()
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && values.Ended():
			return nil
		case err != nil:
		case next == '[':
			err = values.Array(func() error { return value(values) })
		default:
			err = value(values)
		}
		if err != nil {
			return err
		}
	}
}
