package ndjson

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// builder collects the lines of the files and builds the index.
type builder struct {
	maxLine int
	seed    maphash.Seed // of checks and the first half of id hashes
	seed2   maphash.Seed // of the second half

	mu       sync.Mutex
	lists    map[string]*list
	counted  map[string]*source.TypeSize // types that are only counted
	further  chunked[further]            // sorted by place in finish
	numbers  map[string]uint32           // patient id -> number
	ids      []string                    // number -> patient id
	problems []located
	broken   int64 // number of problems, kept or not
	homeless int64 // compartment resources without a patient
}

// located is a problem with its place.
type located struct {
	file      int
	line      int64
	typ, what string
}

// found is one resource while the index is built. The home of its entry is the number of a patient, perhaps with the flag
// manyPeople, or noPatient. The key is dropped in the end.
type found struct {
	key
	entry
}

// further is one more patient of a resource, besides its home.
type further struct {
	place  uint64 // of the resource
	number uint32 // of the patient
}

// key identifies a version of a resource. The 128 bits of hash replace the id within the type.
type key struct {
	hash    [2]uint64
	updated int64 // microseconds since 1970, or math.MinInt64
}

// list has the resources of one type. Keys and entries are separate, so that keys can be dropped without copying entries.
type list struct {
	keys    chunked[key]
	entries chunked[entry]
}

func (l *list) Len() int { return l.entries.n }

func (l *list) Swap(i, j int) {
	l.keys.Swap(i, j)
	l.entries.Swap(i, j)
}

// Less orders by id; the version to serve is the last one of its id.
func (l *list) Less(i, j int) bool {
	a, b := l.keys.at(i), l.keys.at(j)
	return cmp.Or(a.compareID(b.hash), cmp.Compare(a.updated, b.updated),
		cmp.Compare(l.entries.at(i).place, l.entries.at(j).place)) < 0
}

func (k *key) compareID(hash [2]uint64) int {
	return cmp.Or(cmp.Compare(k.hash[0], hash[0]), cmp.Compare(k.hash[1], hash[1]))
}

// settle sorts the list and keeps one version of each resource (L-14: no duplicate id).
func (l *list) settle() {
	sort.Sort(l)
	last := func(i int) bool { return i+1 == l.keys.n || l.keys.at(i).hash != l.keys.at(i+1).hash }
	l.entries.keep(last)
	l.keys.keep(last)
}

// find returns the index of an id hash in a settled list.
func (l *list) find(hash [2]uint64) (int, bool) {
	return sort.Find(l.Len(), func(i int) int { return -l.keys.at(i).compareID(hash) })
}

func newBuilder(seed maphash.Seed, maxLine int) *builder {
	return &builder{
		maxLine: maxLine, seed: seed, seed2: maphash.MakeSeed(),
		lists: map[string]*list{}, counted: map[string]*source.TypeSize{}, numbers: map[string]uint32{},
	}
}

func (b *builder) hash(id string) [2]uint64 {
	return [2]uint64{maphash.String(b.seed, id), maphash.String(b.seed2, id)}
}

// problem records a line that is not served.
func (b *builder) problem(file int, line int64, typ, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken++; len(b.problems) < maxProblems {
		b.problems = append(b.problems, located{file, line, typ, what})
	}
}

func (b *builder) tooLong(file int, line int64) {
	b.problem(file, line, "", fmt.Sprintf("%d bytes or longer", b.maxLine))
}

// number returns the number of a patient id. The caller holds mu or is alone.
func (b *builder) number(id string) uint32 {
	number, ok := b.numbers[id]
	if !ok {
		number = uint32(len(b.ids))
		id = strings.Clone(id)
		b.numbers[id] = number
		b.ids = append(b.ids, id)
	}
	return number
}

// taker adds the lines of blocks to the builder. Each goroutine needs its own.
type taker struct {
	*builder
	files   []*file
	scanner fhir.Scanner
}

// take adds every line of the block.
func (t *taker) take(b block) error {
	data, offset, line := b.data, b.offset, b.line
	if offset == 0 {
		if rest, marked := bytes.CutPrefix(data, []byte("\ufeff")); marked {
			offset += int64(len(data) - len(rest))
			data = rest
		}
	}
	for ; len(data) > 0; line++ {
		text, rest, _ := bytes.Cut(data, []byte{'\n'})
		body := bytes.TrimLeft(text, " \t\r")
		start := offset + int64(len(text)-len(body))
		offset += int64(len(data) - len(rest))
		data = rest
		if body = bytes.TrimRight(body, " \t\r"); len(body) == 0 {
			continue
		}
		if len(body) >= t.maxLine {
			t.tooLong(b.file, line)
			continue
		}
		facts, err := t.scanner.Scan(body)
		switch {
		case err != nil:
			t.problem(b.file, line, typeOfBroken(body), err.Error())
			continue
		case !fhir.IsType(facts.Type):
			t.problem(b.file, line, "", "not a resource type of FHIR R4")
			continue
		}
		if err := t.add(facts, found{
			key: key{hash: t.hash(facts.ID)},
			entry: entry{
				place: uint64(b.file)<<placeBits | uint64(start),
				check: maphash.Bytes(t.seed, body),
				size:  uint32(len(body)),
			},
		}); err != nil {
			return err
		}
	}
	return nil
}

// typeOfBroken returns the resource type of a refused line, "" when unknown.
func typeOfBroken(body []byte) string {
	var resource map[string]any
	if err := json.Unmarshal(body, &resource); err != nil {
		return ""
	}
	if typ, _ := resource["resourceType"].(string); fhir.IsType(typ) {
		return typ
	}
	return ""
}

func (b *builder) add(facts fhir.Facts, f found) error {
	f.updated = math.MinInt64
	if !facts.LastUpdated.IsZero() {
		f.updated = facts.LastUpdated.UnixMicro()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !fhir.IsExportable(facts.Type) {
		size := b.counted[facts.Type]
		if size == nil {
			size = new(source.TypeSize)
			b.counted[facts.Type] = size
		}
		size.Resources++
		size.Bytes += int64(f.size) + 1
		return nil
	}
	f.home = noPatient
	switch {
	case facts.Type == "Patient":
		f.home = b.number(facts.ID)
	case facts.Type != "Provenance": // resolveProvenance sets its home
		home, several := homeOf(facts.Subjects)
		if home != "" {
			f.home = b.number(home)
		}
		if several {
			f.home |= manyPeople
			b.addFurther(f.place, home, facts.Subjects)
		}
	}
	l := b.lists[facts.Type]
	if l == nil {
		l = new(list)
		b.lists[facts.Type] = l
	}
	l.keys.add(f.key)
	l.entries.add(f.entry)
	if l.Len() >= math.MaxUint32 || len(b.ids) >= noPatient {
		return fmt.Errorf("more than %d resources of a type or %d patients", uint32(math.MaxUint32), noPatient)
	}
	return nil
}

// addFurther records the patients among the subjects besides the home.
func (b *builder) addFurther(place uint64, home string, subjects []fhir.Ref) {
	for i, ref := range subjects {
		if ref.Type == "Patient" && ref.ID != home && !slices.Contains(subjects[:i], ref) {
			b.further.add(further{place, b.number(ref.ID)})
		}
	}
}

// furtherOf returns the numbers of the patients of a resource besides its home. Not for Provenance.
func (b *builder) furtherOf(place uint64) []uint32 {
	var numbers []uint32
	i := sort.Search(b.further.n, func(i int) bool { return b.further.at(i).place >= place })
	for ; i < b.further.n && b.further.at(i).place == place; i++ {
		numbers = append(numbers, b.further.at(i).number)
	}
	return numbers
}

// homeOf returns the smallest patient id among the subjects, "" without any, and whether there are others.
func homeOf(subjects []fhir.Ref) (home string, several bool) {
	for _, ref := range subjects {
		switch {
		case ref.Type != "Patient" || ref.ID == home:
		case home == "":
			home = ref.ID
		default:
			home, several = min(home, ref.ID), true
		}
	}
	return home, several
}

// finish builds the index of the source.
func (b *builder) finish(ctx context.Context, s *Source) error {
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, l := range b.lists {
		group.Go(func() error { l.settle(); return ctx.Err() })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	b.further.sort(func(x, y *further) int { return cmp.Compare(x.place, y.place) })
	if err := b.resolveProvenance(ctx, s); err != nil {
		return err
	}
	ranks := b.rankPatients(s)
	for place, numbers := range s.several {
		for i, number := range numbers {
			numbers[i] = ranks[number]
		}
		slices.Sort(numbers)
		s.several[place] = numbers
	}
	s.kinds = make(map[string]kind, len(b.lists))
	s.sizes.Types = make(map[string]source.TypeSize, len(b.lists)+len(b.counted))
	for typ, size := range b.counted {
		s.sizes.Types[typ] = *size
	}
	for typ, l := range b.lists {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.kinds[typ], s.sizes.Types[typ] = b.shrink(s, typ, l, ranks)
	}
	b.lists = nil
	s.sizes.Patients = s.sizes.Types["Patient"].Resources
	b.settleProblems(s)
	return nil
}

// rankPatients moves the sorted patient ids to the source and returns the rank of each number.
func (b *builder) rankPatients(s *Source) []uint32 {
	b.numbers = nil
	order := make([]uint32, len(b.ids))
	total := 0
	for i, id := range b.ids {
		order[i] = uint32(i)
		total += len(id)
	}
	slices.SortFunc(order, func(x, y uint32) int { return strings.Compare(b.ids[x], b.ids[y]) })
	s.patients.ends = make([]uint64, 0, len(order))
	var text strings.Builder
	text.Grow(total)
	ranks := make([]uint32, len(order))
	for rank, number := range order {
		ranks[number] = uint32(rank)
		text.WriteString(b.ids[number])
		s.patients.ends = append(s.patients.ends, uint64(text.Len()))
	}
	s.patients.text = text.String()
	b.ids = nil
	return ranks
}

// shrink returns the index of one type. A resource about several patients gets an entry for each.
func (b *builder) shrink(s *Source, typ string, l *list, ranks []uint32) (kind, source.TypeSize) {
	size := source.TypeSize{Resources: int64(l.Len())}
	for i := range l.Len() {
		size.Bytes += int64(l.entries.at(i).size) + 1
	}
	if fhir.IsReferenced(typ) {
		ids := make([]uint64, l.Len())
		for i := range ids {
			ids[i] = l.keys.at(i).hash[0]
		}
		return kind{entries: &l.entries, ids: ids}, size
	}
	l.keys = chunked[key]{}
	l.entries.keep(func(i int) bool { return l.entries.at(i).home != noPatient })
	b.homeless += size.Resources - int64(l.entries.n)
	for i := range l.entries.n {
		e := l.entries.at(i)
		several, home := e.home&manyPeople != 0, ranks[e.home&^manyPeople]
		e.home = home
		if !several {
			continue
		}
		another := *e
		for _, number := range b.furtherOf(another.place) {
			another.home = ranks[number]
			l.entries.add(another)
		}
		for _, rank := range s.several[another.place] { // for a Provenance: all patients, including its home
			if another.home = rank; rank != home {
				l.entries.add(another)
			}
		}
	}
	l.entries.sort(func(x, y *entry) int { return cmp.Or(cmp.Compare(x.home, y.home), cmp.Compare(x.place, y.place)) })
	return kind{entries: &l.entries}, size
}

func (b *builder) settleProblems(s *Source) {
	slices.SortFunc(b.problems, func(x, y located) int {
		return cmp.Or(cmp.Compare(x.file, y.file), cmp.Compare(x.line, y.line))
	})
	for _, p := range b.problems {
		s.problems = append(s.problems, source.Problem{
			Type: p.typ, Place: fmt.Sprintf("%s line %d", s.files[p.file].name, p.line), What: p.what,
		})
	}
	if more := b.broken - int64(len(b.problems)); more > 0 {
		s.problems = append(s.problems, source.Problem{
			Place: "further lines", What: fmt.Sprintf("%d more lines cannot be served", more),
		})
	}
}

// names are the sorted patient ids in one string.
type names struct {
	text string
	ends []uint64 // end of each id in text
}

func (n names) at(i int) string {
	start := uint64(0)
	if i > 0 {
		start = n.ends[i-1]
	}
	return n.text[start:n.ends[i]]
}

// rank returns the index of an id.
func (n names) rank(id string) (uint32, bool) {
	i, ok := sort.Find(len(n.ends), func(i int) int { return strings.Compare(id, n.at(i)) })
	return uint32(i), ok
}
