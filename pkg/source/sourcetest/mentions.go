package sourcetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Mentions compares who mentions referenced resources, after each load of random histories, with the resources themselves.
func Mentions(t *testing.T, seeds int, open OpenHistory) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			src, load := open(t)
			m := &mentions{random: rand.New(rand.NewPCG(seed, 11)), held: map[string]mentioning{}, ever: map[string]bool{}}
			var instants []time.Time
			var then []map[string]mentioning
			for range 5 {
				load(m.change()...)
				at, err := src.Snapshot(t.Context(), time.Now())
				must(t, err)
				instants, then = append(instants, at), append(then, maps.Clone(m.held))
			}
			for i, at := range instants {
				m.check(t, src, at, then[i])
			}
		})
	}
}

// mentions is a random store.
type mentions struct {
	random *rand.Rand
	serial int
	held   map[string]mentioning // by Type/id
	ever   map[string]bool       // the references of every version
}

// mentioning is a resource: its subjects are patients, its targets are what a Provenance is about.
type mentioning struct{ subjects, targets, refs []string }

func (m *mentions) pick(prefix string) string { return fmt.Sprint(prefix, m.random.IntN(4)) }

// change makes one load: its lines.
func (m *mentions) change() (lines []string) {
	touched := map[string]bool{}
	types := []string{
		"Patient", "Observation", "Appointment", "Practitioner", "PractitionerRole", "Organization", "Provenance",
	}
	for range 5 + m.random.IntN(25) {
		typ := types[m.random.IntN(len(types))]
		id := m.pick(strings.ToLower(typ))
		name := typ + "/" + id
		if touched[name] {
			continue
		}
		touched[name] = true
		if m.random.IntN(5) == 0 {
			delete(m.held, name)
			lines = append(lines, fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":`+
				`{"method":"DELETE","url":%q}}]}`, name))
			continue
		}
		m.serial++
		var r mentioning
		members := []string{fmt.Sprintf(`"meta":{"versionId":"%d"}`, m.serial)}
		mention := func(element, ref string) string {
			r.refs = append(r.refs, ref)
			return fmt.Sprintf(`%q:{"reference":%q}`, element, ref)
		}
		switch typ {
		case "Patient":
			r.subjects = []string{id}
			members = append(members, mention("managingOrganization", "Organization/"+m.pick("organization")))
		case "Observation":
			r.subjects = []string{m.pick("patient")}
			members = append(members, ref("subject", "Patient/"+r.subjects[0]),
				mention("device", "PractitionerRole/"+m.pick("practitionerrole")))
		case "Appointment":
			r.subjects = []string{m.pick("patient"), m.pick("patient")}
			var actors []string
			for _, actor := range []string{"Patient/" + r.subjects[0], "Patient/" + r.subjects[1]} {
				actors = append(actors, "{"+ref("actor", actor)+"}")
			}
			actors = append(actors, "{"+mention("actor", "Practitioner/"+m.pick("practitioner"))+"}")
			members = append(members, `"participant":[`+strings.Join(actors, ",")+`]`)
		case "PractitionerRole":
			members = append(members, mention("practitioner", "Practitioner/"+m.pick("practitioner")),
				mention("organization", "Organization/"+m.pick("organization")))
		case "Organization":
			members = append(members, mention("partOf", "Organization/"+m.pick("organization")))
		case "Provenance":
			r.targets = []string{"Observation/" + m.pick("observation")}
			if m.random.IntN(2) == 0 {
				r.targets = []string{"PractitionerRole/" + m.pick("practitionerrole"), "Organization/" + m.pick("organization")}
				r.refs = append(r.refs, r.targets...)
			}
			members = append(members, targets(r.targets...),
				`"agent":[{`+mention("who", "Practitioner/"+m.pick("practitioner"))+`}]`)
		}
		for _, ref := range r.refs {
			m.ever[ref] = true
		}
		m.held[name] = r
		lines = append(lines, resource(typ, id, members...))
	}
	return lines
}

// check compares the pairs as of an instant with what was held then.
func (m *mentions) check(t *testing.T, src source.Source, at time.Time, held map[string]mentioning) {
	t.Helper()
	var refs []string
	for _, typ := range []string{"Organization", "Practitioner", "PractitionerRole"} {
		for n := range 5 { // one of them is mentioned by nobody
			refs = append(refs, fmt.Sprint(typ, "/", strings.ToLower(typ), n))
		}
	}
	want := map[[2]string]bool{}
	for name, r := range held {
		by := r.subjects
		typ, _, _ := strings.Cut(name, "/")
		if fhir.IsReferenced(typ) {
			by = []string{name}
		}
		for _, target := range r.targets {
			if of := held[target].subjects; of != nil {
				by = append(by, of...)
			}
		}
		if len(by) == 0 && typ == "Provenance" {
			by = r.targets
			if slices.ContainsFunc(by, func(target string) bool {
				_, is := held[target]
				return !is || strings.HasPrefix(target, "Observation/")
			}) {
				by = nil // it is in no export
			}
		}
		for _, by := range by {
			for _, ref := range r.refs {
				want[[2]string{by, ref}] = true
			}
		}
	}
	patients := []string{"patient0", "patient2", "patient3"}
	for _, asked := range [][]string{nil, patients, patients[1:2], {}, slices.Concat([]string{"A"}, many(200), patients)} {
		got := map[[2]string]bool{}
		q := source.MentionsQuery{Refs: refs, Patients: asked, AsOf: at}
		must(t, src.Mentions(t.Context(), q, func(by, ref string) error {
			typ, _, is := strings.Cut(by, "/")
			if is != (asked == nil) || is && !fhir.IsReferenced(typ) || !is && !slices.Contains(asked, by) || !m.ever[ref] {
				t.Errorf("%d patients: %s mentions %s", len(asked), by, ref)
			}
			got[[2]string{by, ref}] = true
			return nil
		}))
		for pair := range want {
			if is := strings.Contains(pair[0], "/"); is != (asked == nil) || !is && !slices.Contains(asked, pair[0]) {
				continue
			}
			if !got[pair] {
				t.Errorf("%d patients: missing that %s mentions %s", len(asked), pair[0], pair[1])
			}
		}
	}
}

// many returns ids that nobody has.
func many(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("nobody%04d", i))
	}
	return ids
}
