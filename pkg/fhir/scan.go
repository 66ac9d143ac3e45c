package fhir

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Facts are the fields of a resource that an export needs.
type Facts struct {
	Type        string    // any non-empty name; the caller checks IsType
	ID          string    // a FHIR id
	LastUpdated time.Time // meta.lastUpdated in UTC; zero when absent or not an instant
	Version     int64     // meta.versionId when it is a positive whole number, else 0

	// Subjects are the local literal references at SubjectPaths(Type), to resources of any type, in the order of the
	// line, with duplicates, and those of contained resources at theirs. Valid until the next Scan.
	Subjects []Ref
	// The other elements at these paths that are or may be a patient, by the form of their reference (spec 10). Of a
	// Provenance, Unresolved counts every target that is not a local literal reference: it may be about a patient.
	Foreign    int // a patient of another server
	Unresolved int // a urn, a search, an identifier, a contained patient, a RelatedPerson, or, beside a patient, a Device
	Invalid    int // not a reference

	expected []expected // of the references at these paths that are urns or absolute
}

// Scanner reads the facts of one line at a time. It reuses its buffers, so each goroutine needs its own. The zero Scanner
// is ready to use.
type Scanner struct {
	roots     []root
	subjects  []Ref
	contained map[string]bool // ids of contained resources
	named     int             // references at subject paths, of any form
	devices   int             // those of them to local devices
	lastType  string
}

// root is a top-level member that a fact is read from.
type root struct {
	name       string
	start, end int // of the value
}

// Errors never contain content of the line.
var (
	errDuplicate = errors.New("a key that is read here is duplicate")
	errSimilar   = errors.New("a key differs only in case from one that is read here")
	errKey       = errors.New("a key has a NUL or half a surrogate pair")
	errNested    = errors.New("an array in an array on the path to a subject")
	errUTF8      = errors.New("not valid UTF-8")
	errNoObject  = errors.New("not a JSON object")
	errTrailing  = errors.New("more than one JSON value")

	// ErrNoID is returned for a resource without an id, or with one that is not a FHIR id.
	ErrNoID = errors.New("no id, or not a FHIR id")
	// ErrNoType is returned for a JSON object without a resourceType.
	ErrNoType = errors.New("no resourceType")
	// ErrTooMany is returned for a line with more than MaxSubjects subjects.
	ErrTooMany = errors.New("too many subjects")
)

// MaxSubjects bounds the subjects of one resource.
const MaxSubjects = 100000

// maxDepth is the maximum nesting of brackets, as in encoding/json.
const maxDepth = 10000

// Scan reads the facts of one NDJSON line, without its newline. It accepts what encoding/json.Valid accepts, and fails
// closed on everything that two parsers could read differently: invalid UTF-8, line breaks between tokens, a missing,
// malformed or duplicate resourceType or id, and on a subject path a duplicate key, escaped or not, a key that differs
// only in case, and a key with a NUL or half a surrogate pair. Errors have a reason and a position, never content. With an
// error the Facts have the Type, if it is known.
func (s *Scanner) Scan(line []byte) (Facts, error) {
	s.roots, s.subjects, s.named, s.devices = s.roots[:0], s.subjects[:0], 0, 0
	clear(s.contained)
	var facts Facts
	if !utf8.Valid(line) {
		return facts, errUTF8
	}
	i := space(line, 0)
	if i == len(line) || line[i] != '{' {
		return facts, errNoObject
	}
	end, err := members(line, i, func(key []byte, start int) (int, error) {
		return s.topLevel(&facts, line, key, start)
	})
	known := Facts{Type: facts.Type}
	switch {
	case err != nil:
		return known, err
	case space(line, end) != len(line):
		return known, errTrailing
	case facts.Type == "":
		return known, ErrNoType
	case facts.ID == "":
		return known, ErrNoID
	}
	for _, r := range s.roots {
		if r.name == "contained" && IsExportable(facts.Type) {
			if _, err := s.scanContained(&facts, line, r.start); err != nil {
				return known, err
			}
		}
	}
	for _, path := range SubjectPaths(facts.Type) {
		name, rest, _ := strings.Cut(path, ".")
		for _, r := range s.roots {
			if r.name != name {
				continue
			}
			if _, err := s.walk(&facts, line, r.start, rest, facts.Type); err != nil {
				return known, err
			}
		}
	}
	facts.Subjects = s.subjects
	if s.devices > 0 && slices.ContainsFunc(s.subjects, func(r Ref) bool { return r.Type == "Patient" }) {
		facts.Unresolved += s.devices // without a patient, the line is in no export
	}
	return facts, nil
}

// PeekType returns the resourceType of a line that Scan refuses, or of the beginning of one: an exportable type, or Group,
// that is certainly the one of the line. It is "" for a line that has several, such as two resources without a line break,
// or a Bundle: some of them would be missed under the type of another.
func PeekType(line []byte) string {
	key := []byte(`"resourceType"`)
	before, value, _ := bytes.Cut(line, key)
	if bytes.Count(before, []byte("{")) != 1 || bytes.Contains(value, key) {
		return ""
	}
	value = bytes.TrimLeft(bytes.TrimPrefix(bytes.TrimLeft(value, " \t"), []byte(":")), " \t")
	if len(value) == 0 || value[0] != '"' {
		return ""
	}
	if name, _, found := bytes.Cut(value[1:], []byte(`"`)); found && (IsExportable(string(name)) || string(name) == "Group") {
		return string(name)
	}
	return ""
}

// topLevel reads the facts of one member of the resource and returns the end of its value. The type may come after the
// subject, so it only marks the values of subject elements.
func (s *Scanner) topLevel(facts *Facts, line, key []byte, start int) (int, error) {
	known := len(s.roots)
	var end int
	var err error
	if s.roots, end, err = addRoot(s.roots, line, key, start); err != nil || len(s.roots) == known {
		return end, err
	}
	switch s.roots[known].name {
	case "resourceType":
		facts.Type = s.typeName(unquote(line, start, end))
	case "id":
		if text := unquote(line, start, end); IsID(text) {
			facts.ID = string(text)
		}
	case "meta":
		if line[start] != '{' {
			break
		}
		var found [2]span
		if _, err = fields(line, start, metaNames, found[:]); err != nil {
			break
		}
		if at, err := time.Parse(time.RFC3339Nano, string(found[0].text(line))); err == nil {
			facts.LastUpdated = at.UTC()
		}
		if version, err := strconv.ParseInt(string(found[1].text(line)), 10, 64); err == nil && version > 0 {
			facts.Version = version
		}
	}
	return end, err
}

// addRoot adds the member of a resource to roots if its key is one of rootNames, and returns the end of its value.
func addRoot(roots []root, line, key []byte, start int) ([]root, int, error) {
	end, err := value(line, start, 1)
	if err != nil {
		return roots, 0, err
	}
	name := rootName(key)
	if name == "" {
		if similarToRoot(key) {
			err = errSimilar
		}
		return roots, end, err
	}
	for _, r := range roots {
		if r.name == name {
			return roots, 0, errDuplicate
		}
	}
	return append(roots, root{name, start, end}), end, nil
}

// typeName returns the text as a string. Adjacent lines mostly have one type.
func (s *Scanner) typeName(text []byte) string {
	if string(text) != s.lastType {
		s.lastType = string(text)
	}
	return s.lastType
}

// rootNames are the top-level keys below which a fact may be. A test compares them with subjectPaths.
var rootNames = [][]byte{
	[]byte("resourceType"), []byte("id"), []byte("meta"), []byte("contained"), []byte("actor"), []byte("beneficiary"),
	[]byte("candidate"), []byte("deliverTo"), []byte("individual"), []byte("participant"), []byte("patient"),
	[]byte("subject"), []byte("target"),
}

// rootName returns key as a constant when it is one of rootNames, else "".
func rootName(key []byte) string {
	switch string(key) {
	case "resourceType":
		return "resourceType"
	case "id":
		return "id"
	case "meta":
		return "meta"
	case "contained":
		return "contained"
	case "actor":
		return "actor"
	case "beneficiary":
		return "beneficiary"
	case "candidate":
		return "candidate"
	case "deliverTo":
		return "deliverTo"
	case "individual":
		return "individual"
	case "participant":
		return "participant"
	case "patient":
		return "patient"
	case "subject":
		return "subject"
	case "target":
		return "target"
	}
	return ""
}

// similarToRoot reports whether a parser that ignores case would take key for one of rootNames.
func similarToRoot(key []byte) bool {
	return slices.ContainsFunc(rootNames, func(name []byte) bool {
		return len(key) >= len(name) && bytes.EqualFold(key, name)
	})
}

// scanContained adds the subjects of the contained resources in the value at i. It counts what may be a patient but has
// no literal reference: a contained patient, a related person without one, and a resource that names several persons by
// nature (spec 10). A type that travels along with every export must contain nothing of the compartment.
func (s *Scanner) scanContained(facts *Facts, line []byte, i int) (int, error) {
	if line[i] == '[' {
		return elements(line, i, func(i int) (int, error) { return s.scanContained(facts, line, i) })
	}
	if line[i] != '{' {
		return value(line, i, 1)
	}
	var roots []root
	end, err := members(line, i, func(key []byte, start int) (end int, err error) {
		roots, end, err = addRoot(roots, line, key, start)
		return end, err
	})
	if err != nil {
		return 0, err
	}
	at := func(name string) span {
		for _, r := range roots {
			if r.name == name {
				return span{r.start, r.end}
			}
		}
		return span{}
	}
	typ := string(at("resourceType").text(line))
	if s.contained == nil {
		s.contained = map[string]bool{}
	}
	s.contained[string(at("id").text(line))] = true
	switch {
	case harmlessContained[typ]:
	case !InCompartment(typ), typ == "Patient", typ == "Provenance":
		facts.Unresolved++
	default:
		told := func() int { return len(s.subjects) + facts.Unresolved + facts.Foreign + facts.Invalid }
		before := told()
		for _, path := range SubjectPaths(typ) {
			name, rest, _ := strings.Cut(path, ".")
			if found := at(name); found.end > 0 {
				if _, err := s.walk(facts, line, found.start, rest, typ); err != nil {
					return 0, err
				}
			}
		}
		if IsReferenced(facts.Type) || typ == "RelatedPerson" && told() == before {
			facts.Unresolved++
		}
	}
	if at("contained").end > 0 { // R4 forbids it: it is not read, so that the time does not grow with the depth
		facts.Unresolved++
	}
	return end, nil
}

// harmlessContained are the types whose contained resources are about no patient. Any other type outside of the
// compartment may have a patient, or a resource about one, somewhere in it.
var harmlessContained = map[string]bool{
	"ActivityDefinition": true, "CodeSystem": true, "DeviceDefinition": true, "Endpoint": true, "HealthcareService": true,
	"InsurancePlan": true, "Library": true, "Location": true, "Measure": true, "Medication": true, "MedicationKnowledge": true,
	"ObservationDefinition": true, "Organization": true, "OrganizationAffiliation": true, "PlanDefinition": true,
	"Practitioner": true, "PractitionerRole": true, "Questionnaire": true, "ResearchStudy": true, "SpecimenDefinition": true,
	"Substance": true, "ValueSet": true,
}

// walk follows a path of keys from the value at i of a resource of the type, through arrays, reads each reference at its
// end, and returns the end of the value. The value has been checked before.
func (s *Scanner) walk(facts *Facts, line []byte, i int, path, typ string) (int, error) {
	switch {
	case line[i] == '[':
		return elements(line, i, func(i int) (int, error) {
			if line[i] == '[' {
				return 0, errNested
			}
			return s.walk(facts, line, i, path, typ)
		})
	case path == "":
		return s.reference(facts, line, i, typ)
	case line[i] != '{':
		if line[i] != 'n' { // null
			facts.Invalid++
		}
		return value(line, i, 1)
	}
	wanted, rest, _ := strings.Cut(path, ".")
	var found [1]span
	end, err := fields(line, i, []string{wanted}, found[:])
	if err == nil && found[0].end > 0 {
		_, err = s.walk(facts, line, found[0].start, rest, typ)
	}
	return end, err
}

var (
	metaNames      = []string{"lastUpdated", "versionId"}
	referenceNames = []string{"reference", "type", "identifier"}
)

// reference reads the Reference at i, a subject of a resource of the type, and returns its end.
func (s *Scanner) reference(facts *Facts, line []byte, i int, typ string) (int, error) {
	target := typ == "Provenance"
	if s.named++; s.named > MaxSubjects {
		return 0, ErrTooMany
	}
	if line[i] != '{' {
		end, err := value(line, i, 1)
		if line[i] != 'n' { // null
			facts.Invalid++
		}
		return end, err
	}
	var found [3]span
	end, err := fields(line, i, referenceNames, found[:])
	if err != nil {
		return 0, err
	}
	ref := found[0]
	switch {
	case ref.end == 0 || line[ref.start] == 'n':
		declared := declaredType(line, found[1])
		other := IsType(string(declared)) && !mayBePatient(declared)
		if target || !other && (found[1].end > 0 || found[2].end > 0) {
			facts.Unresolved++
		}
		return end, nil
	case line[ref.start] != '"':
		facts.Invalid++
		return end, nil
	}
	text := ref.text(line)
	named, id, form := Classify(text)
	if form == Urn || form == Foreign {
		facts.expected = append(facts.expected, expected{ref.start, expect(typ, line, found[1])})
	}
	switch {
	case form == Local:
		s.collect(named, id)
		// Of a patient that only the source could look up.
		if !target && string(named) != "Patient" && mayBePatient(named) {
			facts.Unresolved++
		}
		if !target && string(named) == "Device" {
			s.devices++
		}
	case target:
		facts.Unresolved++
	case form == Foreign && (len(named) == 0 || mayBePatient(named)):
		facts.Foreign++
	case form == Urn, form == Conditional && mayBePatient(named), form == Contained && !s.contained[string(text[1:])]:
		// Contained resources that may be patients are counted by themselves.
		facts.Unresolved++
	case form == Invalid && (len(named) == 0 || mayBePatient(named)):
		facts.Invalid++
	}
	return end, nil
}

// declaredType returns Reference.type without the URL of a definition of R4.
func declaredType(line []byte, typ span) []byte {
	return bytes.TrimPrefix(typ.text(line), []byte("http://hl7.org/fhir/StructureDefinition/"))
}

// expect returns what a reference may name that is a subject of a resource of the type.
func expect(typ string, line []byte, declared span) Expected {
	e := Expected{Subject: typ != "Provenance"}
	switch {
	case declared.end > 0:
		e.Type = cmp.Or(string(declaredType(line, declared)), "no type")
	case onlyPatients(typ):
		e.Type = "Patient"
	}
	return e
}

// mayBePatient reports whether a resource of the type is a patient or a person who may be one.
func mayBePatient(typ []byte) bool {
	return string(typ) == "Patient" || string(typ) == "RelatedPerson" || string(typ) == "Person"
}

// collect appends the resource that a subject reference names. Adjacent lines are mostly about the same patient, so it
// reuses the string of the previous line, which is still in the spare capacity of the slice.
func (s *Scanner) collect(typ, id []byte) {
	n := len(s.subjects)
	if n < cap(s.subjects) {
		s.subjects = s.subjects[:n+1]
	} else {
		s.subjects = append(s.subjects, Ref{})
	}
	ref := &s.subjects[n]
	if ref.Type != string(typ) {
		ref.Type = string(typ)
	}
	if ref.ID != string(id) {
		ref.ID = string(id)
	}
}

// span is the position of a value; empty when there is none.
type span struct{ start, end int }

// text returns the text of a string value, nil for any other.
func (p span) text(line []byte) []byte {
	if p.end == 0 {
		return nil
	}
	return unquote(line, p.start, p.end)
}

// fields finds the values of the named members of the object at i and returns the end of the object. It refuses duplicate
// ones, and keys that differ only in case from a name.
func fields(line []byte, i int, names []string, found []span) (int, error) {
	return members(line, i, func(key []byte, start int) (int, error) {
		end, err := value(line, start, 1)
		if err != nil {
			return 0, err
		}
		for n, name := range names {
			switch {
			case string(key) == name && found[n].end > 0:
				return 0, errDuplicate
			case string(key) == name:
				found[n] = span{start, end}
			case similar(key, name):
				return 0, errSimilar
			}
		}
		return end, nil
	})
}

// similar reports whether a parser that ignores case would take key for name. Of ASCII letters only one bit differs, so the
// first byte decides mostly.
func similar(key []byte, name string) bool {
	return len(key) >= len(name) && (key[0]|0x20 == name[0]|0x20 || key[0] >= 0x80) && bytes.EqualFold(key, []byte(name))
}

// Members returns the values of the named members of a JSON object, as parts of it: empty for one that it does not have. It
// returns an error if two parsers could differ at a key: one of the names twice, a key that differs from a name only in
// case, or a key with a NUL or half a surrogate pair. Deeper objects are not checked, and another value than an object has
// no members. The object is valid JSON without line breaks.
func Members(object []byte, names ...string) (values [][]byte, err error) {
	values = make([][]byte, len(names))
	if len(object) == 0 || object[0] != '{' {
		return values, nil
	}
	found := make([]span, len(names))
	_, err = fields(object, 0, names, found)
	for i, at := range found {
		values[i] = object[at.start:at.end]
	}
	return values, err
}

// elements calls element for each element of the array at i, which has been checked before. element returns the end of
// its element. elements returns the end of the array.
func elements(line []byte, i int, element func(i int) (int, error)) (int, error) {
	i = space(line, i+1)
	if line[i] == ']' {
		return i + 1, nil
	}
	for {
		end, err := element(i)
		if err != nil {
			return 0, err
		}
		end = space(line, end)
		if line[end] == ']' {
			return end + 1, nil
		}
		i = space(line, end+1)
	}
}

// unquote returns the text of the string value between start and end, nil for a value that is not a string.
func unquote(line []byte, start, end int) []byte {
	if line[start] != '"' {
		return nil
	}
	if raw := line[start+1 : end-1]; bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	var text string
	if err := json.Unmarshal(line[start:end], &text); err != nil { // stringEnd has checked it
		return nil
	}
	return []byte(text)
}

// members calls member for each member of the object that opens at i, with the unquoted key and the start of its value.
// member returns the end of the value. members returns the end of the object.
func members(line []byte, i int, member func(key []byte, start int) (int, error)) (int, error) {
	i = space(line, i+1)
	if i < len(line) && line[i] == '}' {
		return i + 1, nil
	}
	for {
		keyEnd, start, err := key(line, i)
		if err != nil {
			return 0, err
		}
		if isOddKey(line[i+1 : keyEnd-1]) {
			return 0, errKey
		}
		end, err := member(unquote(line, i, keyEnd), start)
		if err != nil {
			return 0, err
		}
		i = space(line, end)
		if i >= len(line) {
			return 0, fault(cutOff, i)
		}
		switch line[i] {
		case '}':
			return i + 1, nil
		case ',':
			i = space(line, i+1)
		default:
			return 0, fault("a comma is missing", i)
		}
	}
}

// isOddKey reports whether the quoted key has an escaped NUL or half of a surrogate pair, at which parsers differ.
func isOddKey(raw []byte) bool {
	for i := bytes.IndexByte(raw, '\\'); i >= 0 && i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		switch code := hex4(raw[i+1:]); {
		case code == 0, code >= 0xdc00 && code <= 0xdfff:
			return true
		case code >= 0xd800 && code <= 0xdbff:
			rest := raw[i+5:]
			if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' {
				return true
			}
			if low := hex4(rest[2:]); low < 0xdc00 || low > 0xdfff {
				return true
			}
			i += 6
		}
		i += 4
	}
	return false
}

// hex4 returns the number that the first four hex digits make. stringEnd has checked them.
func hex4(digits []byte) (n uint64) {
	n, _ = strconv.ParseUint(string(digits[:4]), 16, 32)
	return n
}

// value checks the JSON value that starts at i, below depth open brackets, and returns its end.
func value(line []byte, i, depth int) (int, error) {
	if i >= len(line) {
		return 0, fault(cutOff, i)
	}
	open := line[i]
	switch {
	case open == '"':
		end := stringEnd(line, i+1)
		if end < 0 {
			return 0, fault("a string is broken", i)
		}
		return end, nil
	case open != '{' && open != '[':
		end := scalarEnd(line, i)
		if end < 0 {
			return 0, fault("not a JSON value", i)
		}
		return end, nil
	case depth == maxDepth:
		return 0, fault("nested too deeply", i)
	}
	closer := open + 2 // in ASCII a closing bracket is two after its opening one
	i = space(line, i+1)
	if i < len(line) && line[i] == closer {
		return i + 1, nil
	}
	for {
		var err error
		if open == '{' {
			if _, i, err = key(line, i); err != nil {
				return 0, err
			}
		}
		if i, err = value(line, i, depth+1); err != nil {
			return 0, err
		}
		i = space(line, i)
		switch {
		case i >= len(line):
			return 0, fault(cutOff, i)
		case line[i] == closer:
			return i + 1, nil
		case line[i] != ',':
			return 0, fault("a comma or a bracket is missing", i)
		}
		i = space(line, i+1)
	}
}

// key checks the key and the colon at i and returns the end of the key and the start of the value.
func key(line []byte, i int) (end, start int, err error) {
	if i >= len(line) || line[i] != '"' {
		return 0, 0, fault("a key is missing", i)
	}
	if end = stringEnd(line, i+1); end < 0 {
		return 0, 0, fault("a string is broken", i)
	}
	colon := space(line, end)
	if colon >= len(line) || line[colon] != ':' {
		return 0, 0, fault("a colon is missing", colon)
	}
	return end, space(line, colon+1), nil
}

const cutOff = "the line ends too early"

func fault(what string, at int) error { return fmt.Errorf("not valid JSON at byte %d: %s", at, what) }

// space returns the position of the first byte from i on that is not white space. A line break is not white space here,
// because some readers would end the line there.
func space(line []byte, i int) int {
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	return i
}

// stringEnd returns the position after the closing quote of the string whose content starts at i, or -1. It tests eight
// bytes at once: the lowest bit set in stop marks the first quote, backslash or control character (higher bits may be
// wrong because of the borrow of the subtraction).
func stringEnd(line []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for {
		for i+8 <= len(line) {
			word := binary.LittleEndian.Uint64(line[i:])
			quote, escape := word^ones*'"', word^ones*'\\'
			stop := ((quote-ones)&^quote | (escape-ones)&^escape | (word-ones*0x20)&^word) & highs
			if stop != 0 {
				i += bits.TrailingZeros64(stop) / 8
				break
			}
			i += 8
		}
		for i < len(line) && line[i] != '"' && line[i] != '\\' && line[i] >= ' ' {
			i++
		}
		if i >= len(line) || line[i] < ' ' {
			return -1
		}
		if line[i] == '"' {
			return i + 1
		}
		if i+1 >= len(line) {
			return -1
		}
		switch line[i+1] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i += 2
		case 'u':
			if i+6 > len(line) {
				return -1
			}
			for _, c := range line[i+2 : i+6] {
				if strings.IndexByte("0123456789abcdefABCDEF", c) < 0 {
					return -1
				}
			}
			i += 6
		default:
			return -1
		}
	}
}

// scalarEnd returns the position after the number, true, false or null at i, or -1.
func scalarEnd(line []byte, i int) int {
	rest := line[i:]
	for _, word := range [...]string{"true", "false", "null"} {
		if len(rest) >= len(word) && string(rest[:len(word)]) == word {
			return i + len(word)
		}
	}
	if i < len(line) && line[i] == '-' {
		i++
	}
	from := i
	i = digits(line, i)
	if i == from || line[from] == '0' && i > from+1 {
		return -1
	}
	if i < len(line) && line[i] == '.' {
		from = i + 1
		if i = digits(line, from); i == from {
			return -1
		}
	}
	if i < len(line) && (line[i] == 'e' || line[i] == 'E') {
		i++
		if i < len(line) && (line[i] == '+' || line[i] == '-') {
			i++
		}
		from = i
		if i = digits(line, from); i == from {
			return -1
		}
	}
	return i
}

func digits(line []byte, i int) int {
	for i < len(line) && line[i] >= '0' && line[i] <= '9' {
		i++
	}
	return i
}
