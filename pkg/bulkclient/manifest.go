package bulkclient

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Manifest lists the files of a finished export (spec 3). A server may leave out anything but the files (see Missing).
type Manifest struct {
	TransactionTime     string `json:"transactionTime"`
	Request             string `json:"request"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	Output              []Item `json:"output"`
	Deleted             []Item `json:"deleted"`
	Error               []Item `json:"error"`
	// OrganizedBy is the type of the resources to which the blocks of the output belong (P-37); "": a file has one type.
	OrganizedBy string `json:"outputOrganizedBy,omitempty"`
	// Next is the URL of the next page of the manifest (P-39); "": there is none.
	Next string `json:"-"`

	// Missing names the required members that the server did not send or sent empty. An absent requiresAccessToken
	// counts as true for files on the origin of the base URL, and as false for others, which never get the token.
	Missing []string `json:"-"`

	numbers []export.Numbers // of its extension; nil: none
	pages   []page           // as they came, if they have signatures
}

// page is a signed manifest, or a page of one.
type page struct {
	manifest  []byte
	signature string // a detached JWS over manifest
}

// Item is one file of a manifest.
type Item struct {
	Type      string          `json:"type"`                      // "": not given: any one type, or see OrganizedBy
	URL       string          `json:"url"`                       // absolute once the manifest is read
	Count     *int64          `json:"count,omitempty"`           // lines; nil when unknown
	Continues string          `json:"continuesInFile,omitempty"` // URL of the file with the rest of the last block
	Extension json.RawMessage `json:"extension,omitempty"`       // of any form
	Local     *StoredFile     `json:"local,omitempty"`           // only in the manifest.json of a folder: the downloaded file
}

// items returns the items of all lists: output, deleted, error.
func (m *Manifest) items() []*Item {
	var all []*Item
	for _, list := range [][]Item{m.Output, m.Deleted, m.Error} {
		for i := range list {
			all = append(all, &list[i])
		}
	}
	return all
}

const (
	maxManifest = 256 << 20 // bytes of a manifest
	maxFiles    = 1_000_000 // items of a manifest
	maxItem     = 1 << 20   // bytes of an item, and of anything else that is read at once
	maxNesting  = 100       // of a member that is skipped: the decoder keeps memory for each level
)

var errTooLong = errors.New("it, or a part of it, is too long")

// bounded is a reader that ends with errTooLong, so that a decoder's buffer is bounded.
type bounded struct {
	in          io.Reader
	total, item int64 // bytes that may still be read, in all and before the next reset of item
}

func (b *bounded) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), b.total, b.item)]
	if len(p) == 0 {
		return 0, errTooLong
	}
	n, err := b.in.Read(p)
	b.total -= int64(n)
	b.item -= int64(n)
	return n, err
}

// readManifest reads a manifest item by item, so that it takes no more memory than its files need. It accepts missing
// members and names them in Missing, but refuses with ErrMismatch what is malformed, and what is not a manifest: a proxy
// may send any document with a 200, which must not be mistaken for the manifest of an export without files. Relative URLs
// are resolved against from, the URL of the manifest.
func readManifest(in io.Reader, from *url.URL) (*Manifest, error) {
	manifest, err := newManifestReader(in, from, maxFiles).read()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, errTooLong) {
		return nil, malformed("%w", err)
	}
	return manifest, err
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: not a manifest: %w", ErrMismatch, fmt.Errorf(format, args...))
}

type manifestReader struct {
	in      *bounded
	decoder *json.Decoder
	from    *url.URL
	members map[string]json.RawMessage // the known ones; nil for a list of files
	items   int
	most    int // items
}

func newManifestReader(in io.Reader, from *url.URL, most int) *manifestReader {
	r := &manifestReader{
		in: &bounded{in: in, total: maxManifest, item: maxItem}, from: from, most: most,
		members: make(map[string]json.RawMessage),
	}
	r.decoder = json.NewDecoder(r.in)
	return r
}

func (r *manifestReader) token() (json.Token, error) {
	r.in.item = maxItem
	return r.decoder.Token()
}

// more reports whether there is another element. It is also false after an error, so the end has to be checked.
func (r *manifestReader) more() bool {
	r.in.item = maxItem
	return r.decoder.More()
}

func (r *manifestReader) decode(value any) error {
	r.in.item = maxItem
	return r.decoder.Decode(value)
}

// skip reads a value without keeping it.
func (r *manifestReader) skip() error {
	for depth := 0; ; {
		token, err := r.token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxNesting {
				return malformed("a member is nested deeper than %d levels", maxNesting)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

func (r *manifestReader) read() (*Manifest, error) {
	manifest := &Manifest{}
	lists := map[string]*[]Item{"output": &manifest.Output, "deleted": &manifest.Deleted, "error": &manifest.Error}
	if token, err := r.token(); err != nil || token != json.Delim('{') {
		return nil, cmp.Or(err, malformed("it is not a JSON object"))
	}
	for r.more() {
		token, err := r.token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // the name of a member is always a string
		if _, twice := r.members[name]; twice {
			return nil, malformed("%q appears twice", printable(name))
		}
		var value json.RawMessage
		switch name {
		case "output", "deleted", "error":
			*lists[name], err = r.list(name)
		case "transactionTime", "request", "requiresAccessToken", "resourceType", "link", "extension", "outputOrganizedBy":
			err = r.decode(&value)
		default:
			if err := r.skip(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r.members[name] = value
	}
	if end, err := r.token(); err != nil || end != json.Delim('}') {
		return nil, cmp.Or(err, errTooLong)
	}
	if _, err := r.token(); !errors.Is(err, io.EOF) {
		return nil, malformed("text follows the JSON object")
	}
	return manifest, r.fill(manifest)
}

// list reads a list of files; it is nil for null.
func (r *manifestReader) list(name string) ([]Item, error) {
	token, err := r.token()
	if err != nil || token == nil {
		return nil, err
	}
	if token != json.Delim('[') {
		return nil, malformed("%s is not a list", name)
	}
	list := []Item{}
	for r.more() {
		if r.items++; r.items > r.most {
			return nil, malformed("it lists more than %d files", r.most)
		}
		item, err := r.item(name)
		if err != nil {
			return nil, fmt.Errorf("%s[%d] of the manifest: %w", name, len(list), err)
		}
		list = append(list, item)
	}
	if end, err := r.token(); err != nil || end != json.Delim(']') {
		return nil, cmp.Or(err, errTooLong)
	}
	return list, nil
}

func (r *manifestReader) item(list string) (Item, error) {
	var raw struct {
		Item
		Count json.RawMessage `json:"count"`
	}
	var wrong *json.UnmarshalTypeError
	err := r.decode(&raw)
	if errors.As(err, &wrong) {
		return Item{}, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	if err != nil {
		return Item{}, err
	}
	item := raw.Item
	if n, err := number(raw.Count); err != nil {
		return Item{}, fmt.Errorf("%w: its count %q is not a number", ErrMismatch, printable(string(raw.Count)))
	} else if n >= 0 {
		item.Count = &n
	}
	if item.Type == "" { // output of one type may leave it out: the lines have it
		item.Type = map[string]string{"error": "OperationOutcome", "deleted": "Bundle"}[list]
	}
	if item.Type != "" && !safeType.MatchString(item.Type) {
		return Item{}, fmt.Errorf("%w: the type %q is not the name of a resource type", ErrMismatch, printable(item.Type))
	}
	if item.URL, err = r.absolute(item.URL); err != nil {
		return Item{}, fmt.Errorf("the URL of a file of type %q: %w", item.Type, err)
	}
	if item.Continues != "" {
		if item.Continues, err = r.absolute(item.Continues); err != nil {
			return Item{}, fmt.Errorf("continuesInFile of a file: %w", err)
		}
	}
	return item, nil
}

// absolute resolves a URL of the manifest. A manifest.json, which comes from no URL, may have names of files instead: see
// merge.
func (r *manifestReader) absolute(text string) (string, error) {
	location, err := r.from.Parse(text)
	if err != nil || text == "" {
		return "", fmt.Errorf("%w: it is no URL", ErrMismatch)
	}
	if *r.from == (url.URL{}) && isData(text) && !strings.ContainsAny(text, `:/\`) {
		return text, nil
	}
	if err := allowed(location, r.from); err != nil {
		return "", err
	}
	return location.String(), nil
}

// number reads a JSON number of whole units, also in quotes, as some servers send it. It returns -1 for nothing, null and
// negative numbers.
func number(raw json.RawMessage) (int64, error) {
	text := strings.TrimSpace(strings.Trim(string(raw), `"`))
	if text == "" || text == "null" {
		return -1, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n != math.Trunc(n) || n > 1<<53 {
		return 0, errors.New("not a whole number")
	}
	return max(int64(n), -1), nil
}

// fill sets the other members of the manifest.
func (r *manifestReader) fill(manifest *Manifest) error {
	if kind, ok := r.members["resourceType"]; ok {
		return malformed("it is a FHIR resource of type %s", printable(string(kind)))
	}
	var links []struct{ Relation, URL string }
	if raw := r.members["link"]; raw != nil && json.Unmarshal(raw, &links) != nil {
		return malformed("link is not a list")
	}
	for _, link := range links {
		if link.Relation != "next" {
			continue
		}
		next, err := r.absolute(link.URL)
		if err != nil || manifest.Next != "" {
			return malformed("its link next is not an http URL, or there are two")
		}
		manifest.Next = next
	}
	for name, to := range map[string]*string{
		"transactionTime": &manifest.TransactionTime, "request": &manifest.Request, "outputOrganizedBy": &manifest.OrganizedBy,
	} {
		if raw := r.members[name]; raw != nil && json.Unmarshal(raw, to) != nil {
			return malformed("%s is not a string", name)
		}
	}
	if manifest.OrganizedBy != "" && !safeType.MatchString(manifest.OrganizedBy) {
		return malformed("outputOrganizedBy is not the name of a resource type")
	}
	switch raw := strings.Trim(string(r.members["requiresAccessToken"]), `"`); strings.ToLower(raw) {
	case "true":
		manifest.RequiresAccessToken = true
	case "false":
	case "", "null":
		manifest.RequiresAccessToken, manifest.Missing = true, append(manifest.Missing, "requiresAccessToken")
	default:
		return malformed("requiresAccessToken is neither true nor false")
	}
	if manifest.Request == "" {
		manifest.Missing = append(manifest.Missing, "request")
	}
	if manifest.TransactionTime == "" {
		manifest.Missing = append(manifest.Missing, "transactionTime")
	}
	manifest.numbers = numbersIn(r.members["extension"])
	const others = 3 // those above
	if manifest.Output == nil || len(manifest.Output) == 0 && len(manifest.Missing) == others {
		return malformed("it has no output")
	}
	if manifest.Error == nil {
		manifest.Missing = append(manifest.Missing, "error")
		manifest.Error = []Item{}
	}
	if manifest.Deleted == nil { // optional
		manifest.Deleted = []Item{}
	}
	return nil
}

// warnings describe what the manifest lacks.
func (m *Manifest) warnings() []string {
	found := []string{}
	if len(m.Missing) > 0 {
		found = append(found, "the manifest has no "+strings.Join(m.Missing, ", no "))
	}
	if _, err := time.Parse(time.RFC3339, m.TransactionTime); err != nil && m.TransactionTime != "" {
		found = append(found, fmt.Sprintf("the manifest's transactionTime %q is not an instant", printable(m.TransactionTime)))
	}
	return found
}

// allowed refuses the URL of a job or of a file that is not http or https, has credentials, or is plain http although the
// document that names it came by https.
func allowed(u, from *url.URL) error {
	switch {
	case !isWeb(u) || u.User != nil:
		return fmt.Errorf("%w: not an http URL without credentials", ErrMismatch)
	case from.Scheme == "https" && u.Scheme != "https":
		return fmt.Errorf("%w: it is plain http, but the server uses https", ErrInsecureHTTP)
	}
	return nil
}

// List is one of the file lists of a manifest.
type List string

// The lists of a manifest.
const (
	ListOutput  List = "output"
	ListDeleted List = "deleted"
	ListError   List = "error"
)

// File is one file of an export, and its name in the folder.
type File struct {
	List   List
	Type   string  // resource type of every line; "": any one type, unless Mixed
	Mixed  bool    // its lines are of several types, in blocks (P-37)
	URL    string  // absolute
	Count  int64   // lines, -1 when unknown; of a mixed file with or without the headers of the blocks
	Digest *Digest // nil when unknown
	Name   string  // of the finished file without .gz, as Patient.2.ndjson: safe, and unique in the folder
}

var safeType = regexp.MustCompile(`^[A-Z][A-Za-z]{0,63}$`)

// untyped is the name of a file whose type the server did not tell.
const untyped = "Resource"

// files lists the files of a manifest: output, deleted, error. A file is named for its type, as Patient.ndjson,
// Patient.2.ndjson, except that a file that the folder knows already (by URL), finished or not, keeps its name, whatever
// the order of the manifest.
func files(manifest *Manifest, known map[string]string) ([]File, error) {
	var found []File
	named, listed := newFileNames(), make(map[string]bool)
	for _, name := range known {
		named.take(name)
	}
	for _, list := range []struct {
		name  List
		items []Item
	}{{ListOutput, manifest.Output}, {ListDeleted, manifest.Deleted}, {ListError, manifest.Error}} {
		for i, item := range list.items {
			if listed[item.URL] {
				return nil, fmt.Errorf("%w: %s[%d] of the manifest: the file is listed twice", ErrMismatch, list.name, i)
			}
			listed[item.URL] = true
			file := File{
				List: list.name, Type: item.Type, URL: item.URL, Count: -1, Name: known[item.URL], Digest: digestIn(item.Extension),
			}
			if item.Count != nil {
				file.Count = *item.Count
			}
			stem := cmp.Or(item.Type, untyped)
			if list.name == ListOutput && item.Type == "" && manifest.OrganizedBy != "" {
				file.Mixed, stem = true, "By"+manifest.OrganizedBy
			}
			if file.Name == "" {
				file.Name = named.next(stem)
			}
			found = append(found, file)
		}
	}
	for i, item := range manifest.Output {
		if item.Continues != "" && !listed[item.Continues] {
			return nil, fmt.Errorf("%w: output[%d] of the manifest: it continues in a file that is not listed", ErrMismatch, i)
		}
	}
	return found, nil
}

// fileNames gives out names of files. Names that differ only in case are one file on some disks.
type fileNames struct {
	taken map[string]bool
	last  map[string]int // by stem
}

func newFileNames() *fileNames { return &fileNames{make(map[string]bool), make(map[string]int)} }

func (n *fileNames) take(name string) { n.taken[strings.ToLower(name)] = true }

// next returns the next free name: Patient.ndjson, Patient.2.ndjson.
func (n *fileNames) next(stem string) string {
	for {
		n.last[stem]++
		name := stem + ".ndjson"
		if n.last[stem] > 1 {
			name = fmt.Sprintf("%s.%d.ndjson", stem, n.last[stem])
		}
		if !n.taken[strings.ToLower(name)] {
			n.take(name)
			return name
		}
	}
}

// join adds the next page to the manifest. The pages of an export differ in their lists only; the numbers may be known on
// the last page only.
func (m *Manifest) join(next *Manifest) error {
	if m.TransactionTime != next.TransactionTime || m.RequiresAccessToken != next.RequiresAccessToken ||
		m.OrganizedBy != next.OrganizedBy {
		return malformed("its pages are of different exports")
	}
	m.Output = append(m.Output, next.Output...)
	m.Deleted = append(m.Deleted, next.Deleted...)
	m.Error = append(m.Error, next.Error...)
	if len(m.Output)+len(m.Deleted)+len(m.Error) > maxFiles {
		return malformed("it lists more than %d files", maxFiles)
	}
	if next.numbers != nil {
		m.numbers = next.numbers
	}
	m.Next, m.pages = next.Next, append(m.pages, next.pages...)
	return nil
}
