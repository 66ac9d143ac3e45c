// Package references resolves references that are not local literal ones: absolute ones below a base of the data, urns,
// and searches by identifier (spec 10). Data is read twice: first every line is noted (Note), then every resource that
// may be meant is offered (Offer), and then the lines are rewritten (Resolve).
//
// A urn names the one held resource that has it as id. Where a patient may be named, it is the one of the reference's type,
// or the patient where R4 allows no other type; without a type it must be a patient. Elsewhere the type is not read. A
// search names the one held resource of its type with the identifier. What matches several resources is not resolved.
package references

import (
	"maps"
	"math"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Table has the references that were noted, and what they name. Its methods may be called concurrently, except for
// Resolve, which must follow the last Offer.
type Table struct {
	bases fhir.Bases

	mu       sync.Mutex
	urns     map[string]*named
	searches map[search]*named
}

// named is what a reference names.
type named struct {
	ids     []fhir.Ref // of a urn, one for each type; of a search up to two
	settled bool       // further offers do not count
	used    atomic.Bool
}

func (n *named) add(ref fhir.Ref, most int) {
	if !n.settled && len(n.ids) < most && !slices.Contains(n.ids, ref) {
		n.ids = append(n.ids, ref)
	}
}

// one returns the resource, if it is a single one.
func (n *named) one(of fhir.Expected, form fhir.Form) (ref fhir.Ref, found bool) {
	switch {
	case n == nil:
	case form == fhir.Urn && of.Type != "":
		i := slices.IndexFunc(n.ids, func(r fhir.Ref) bool { return r.Type == of.Type })
		if i >= 0 {
			return n.ids[i], true
		}
	case len(n.ids) == 1:
		return n.ids[0], !of.Subject || n.ids[0].Type == "Patient"
	}
	return fhir.Ref{}, false
}

// search is a search by identifier.
type search struct{ typ, system, value string }

// anySystem is the system of a search without one.
const anySystem = "\x00"

// New returns an empty table. Absolute references below the bases are local.
func New(bases fhir.Bases) *Table {
	return &Table{bases: bases, urns: map[string]*named{}, searches: map[search]*named{}}
}

// Note notes the references of a line, and reports whether any of them is for Resolve. Scan must have accepted the line.
func (t *Table) Note(line []byte) bool {
	found := false
	fhir.Resolve(nil, line, fhir.Facts{}, func(text []byte, form fhir.Form, _ fhir.Expected) string {
		found = true
		switch form {
		case fhir.Urn:
			t.mu.Lock()
			defer t.mu.Unlock()
			if key := urn(text); t.urns[key] == nil {
				t.urns[key] = new(named)
			}
		case fhir.Conditional:
			if key, ok := parseSearch(string(text)); ok {
				t.mu.Lock()
				defer t.mu.Unlock()
				if t.searches[key] == nil {
					t.searches[key] = new(named)
				}
			}
		}
		return ""
	})
	return found
}

// Wants returns the types whose resources must be offered with their lines, sorted, and whether the ids of all types must
// be offered.
func (t *Table) Wants() (types []string, ids bool) {
	types = t.searched(func(*named) bool { return true })
	t.mu.Lock()
	defer t.mu.Unlock()
	return types, len(t.urns) > 0
}

// searched returns the types of the searches that are chosen, sorted.
func (t *Table) searched(chosen func(*named) bool) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	types := map[string]bool{}
	for key, n := range t.searches {
		if chosen(n) {
			types[key.typ] = true
		}
	}
	return slices.Sorted(maps.Keys(types))
}

// URNs calls yield for each id that a noted urn may name, of which no resource was offered.
func (t *Table) URNs(yield func(id string) bool) {
	for id, n := range t.urns {
		if len(n.ids) == 0 && !yield(id) {
			return
		}
	}
}

// Unmatched returns the types of the searches for which no resource was offered, sorted.
func (t *Table) Unmatched() []string {
	return t.searched(func(n *named) bool { return len(n.ids) == 0 })
}

// Settle makes later offers count only for references that match nothing so far: what is loaded together takes
// precedence over what the store has.
func (t *Table) Settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.urns {
		n.settled = len(n.ids) > 0
	}
	for _, n := range t.searches {
		n.settled = len(n.ids) > 0
	}
}

// OfferID notes that a resource is held.
func (t *Table) OfferID(ref fhir.Ref) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.urns[ref.ID]; n != nil {
		n.add(ref, math.MaxInt)
	}
}

// Offer notes that a resource of one of the wanted types is held.
func (t *Table) Offer(ref fhir.Ref, line []byte) {
	fhir.Identifiers(line, func(system, value string) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, key := range []search{{ref.Type, system, value}, {ref.Type, anySystem, value}} {
			if n := t.searches[key]; n != nil {
				n.add(ref, 2)
			}
		}
	})
}

// Used yields each resource that Resolve has named for searches, and a function that reports whether a line of it has the
// identifiers of all of them.
func (t *Table) Used(yield func(ref fhir.Ref, has func(line []byte) bool) bool) {
	used := map[fhir.Ref][]search{}
	for key, n := range t.searches {
		if n.used.Load() {
			used[n.ids[0]] = append(used[n.ids[0]], key)
		}
	}
	for ref, keys := range used {
		has := func(line []byte) bool {
			found := map[search]bool{}
			fhir.Identifiers(line, func(system, value string) {
				found[search{ref.Type, system, value}], found[search{ref.Type, anySystem, value}] = true, true
			})
			return !slices.ContainsFunc(keys, func(key search) bool { return !found[key] })
		}
		if !yield(ref, has) {
			return
		}
	}
}

// Resolve returns the line with every reference resolved that names one resource. It calls missed for each other one,
// except for those to the patient of the line, with its type, "" if it has none, and its form. The result is line itself
// if nothing changes, else it is appended to buffer. facts are those of the line.
func (t *Table) Resolve(
	buffer, line []byte, facts fhir.Facts, missed func(typ string, form fhir.Form),
) (resolved []byte, changed bool) {
	return fhir.Resolve(buffer, line, facts, func(text []byte, form fhir.Form, of fhir.Expected) string {
		typ, _, _ := fhir.Classify(text)
		var n *named
		switch form {
		case fhir.Foreign:
			if ref, below := t.bases.Literal(string(text)); below {
				return ref.Type + "/" + ref.ID
			}
		case fhir.Urn:
			n = t.urns[urn(text)]
		case fhir.Conditional:
			if key, ok := parseSearch(string(text)); ok {
				n = t.searches[key]
			}
		}
		if ref, found := n.one(of, form); found {
			n.used.Store(true)
			return ref.Type + "/" + ref.ID
		}
		if !of.Subject {
			missed(string(typ), form)
		}
		return ""
	})
}

// urn returns the id of a resource that is named by a urn.
func urn(text []byte) string {
	id, _, _ := strings.Cut(string(text), "#")
	_, id, _ = strings.Cut(id, ":") // urn
	_, id, _ = strings.Cut(id, ":") // uuid, oid
	return id
}

// parseSearch reads Type?identifier=system|value. It returns false for any other search.
func parseSearch(text string) (search, bool) {
	typ, query, _ := strings.Cut(strings.TrimPrefix(text, "/"), "?")
	token, found := strings.CutPrefix(query, "identifier=")
	if !found || strings.Contains(token, "&") {
		return search{}, false
	}
	token, err := url.PathUnescape(token) // unlike in a form, + is a plus here: writers do not escape it
	if err != nil {
		return search{}, false
	}
	system, value, bar := strings.Cut(token, "|")
	if !bar {
		system, value = anySystem, token
	}
	return search{typ, system, value}, value != ""
}
