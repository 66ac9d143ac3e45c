package ndjson

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// builder collects the lines of the files and builds the index.
type builder struct {
	files   []*file
	maxLine int
	seed    maphash.Seed // for checks and the first half of id hashes
	seed2   maphash.Seed // for the second half

	mu       sync.Mutex
	lists    map[string]*list           // by type
	counted  map[string]source.TypeSize // types that are only counted
	several  map[uint64][]uint32        // numbers of the patients of a resource with several, by its place
	numbers  map[string]uint32          // patient id -> number
	problems []located
	broken   int64 // number of problems, kept or not
	homeless int64 // compartment resources without a patient
}

// located is a problem with its place.
type located struct {
	file int
	line int64
	source.Problem
}

// found is one resource while the index is built. The home of its entry is the number of its patient, noPatient, or
// manyPatients.
type found struct {
	hash    [2]uint64 // replaces the id within the type
	updated int64     // microseconds since 1970, or math.MinInt64
	entry
}

func (f *found) compareID(hash [2]uint64) int {
	return cmp.Or(cmp.Compare(f.hash[0], hash[0]), cmp.Compare(f.hash[1], hash[1]))
}

// list has the resources of one type in chunks, so that it grows without copying, which would double the memory.
type list struct {
	chunks [][]found
	n      int
}

const chunkSize = 1 << 13

func (l *list) at(i int) *found { return &l.chunks[i/chunkSize][i%chunkSize] }

func (l *list) add(f found) {
	if l.n%chunkSize == 0 {
		l.chunks = append(l.chunks, make([]found, 0, min(l.n, chunkSize))) // the first one grows: many types are small
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, f)
	l.n++
}

func (l *list) Len() int      { return l.n }
func (l *list) Swap(i, j int) { a, b := l.at(i), l.at(j); *a, *b = *b, *a }

// Less orders by id; the version to serve is the last one of its id.
func (l *list) Less(i, j int) bool {
	a, b := l.at(i), l.at(j)
	return cmp.Or(a.compareID(b.hash), cmp.Compare(a.updated, b.updated), cmp.Compare(a.place, b.place)) < 0
}

// settle sorts the list and keeps one version of each resource (L-14: no duplicate id).
func (l *list) settle() {
	sort.Sort(l)
	kept := 0
	for i := range l.n {
		if i+1 == l.n || l.at(i).hash != l.at(i+1).hash {
			*l.at(kept) = *l.at(i)
			kept++
		}
	}
	l.n = kept
}

// find returns the resource with the id hash in a settled list, or nil.
func (l *list) find(hash [2]uint64) *found {
	if l == nil {
		return nil
	}
	if i, held := sort.Find(l.n, func(i int) int { return -l.at(i).compareID(hash) }); held {
		return l.at(i)
	}
	return nil
}

func newBuilder(files []*file, seed maphash.Seed, maxLine int) *builder {
	return &builder{
		files: files, maxLine: maxLine, seed: seed, seed2: maphash.MakeSeed(), lists: map[string]*list{},
		counted: map[string]source.TypeSize{}, several: map[uint64][]uint32{}, numbers: map[string]uint32{},
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
		place := fmt.Sprintf("%s line %d", b.files[file].name, line)
		b.problems = append(b.problems, located{file, line, source.Problem{Type: typ, Place: place, What: what}})
	}
}

// number returns the number of a patient id. The caller holds mu or is the only goroutine.
func (b *builder) number(id string) uint32 {
	number, ok := b.numbers[id]
	if !ok {
		number = uint32(len(b.numbers))
		b.numbers[strings.Clone(id)] = number
	}
	return number
}

// read adds every line of the files.
func (b *builder) read(ctx context.Context, spoolDir string) error {
	files := make([]lines.File, len(b.files))
	for i, f := range b.files {
		files[i] = lines.File{Path: f.name, Size: f.size}
	}
	r := lines.Reader{
		BlockSize: blockSize, MaxLine: b.maxLine, Takers: runtime.GOMAXPROCS(0),
		Open: func(file int) (io.ReadCloser, error) {
			text, err := b.files[file].text(spoolDir)
			return io.NopCloser(text), err
		},
	}
	if err := r.Read(ctx, files, b.take); err != nil {
		return err
	}
	for _, f := range b.files {
		if err := f.unchanged(); err != nil {
			return err
		}
	}
	return nil
}

// take adds every line of the block.
func (b *builder) take(_ context.Context, block *lines.Block) error {
	var scanner fhir.Scanner
	var patients []string
	for line := range block.Lines {
		if line.TooLong {
			b.problem(block.File, line.Number, "", fmt.Sprintf("%d bytes or longer", b.maxLine))
			continue
		}
		if line.Offset > placeMask {
			return fmt.Errorf("%s holds more than %d bytes", b.files[block.File].name, int64(placeMask))
		}
		facts, err := scanner.Scan(line.Body)
		switch {
		case err != nil:
			b.problem(block.File, line.Number, typeOfBroken(line.Body), err.Error())
			continue
		case !fhir.IsType(facts.Type):
			b.problem(block.File, line.Number, "", "not a resource type of FHIR R4")
			continue
		}
		f := found{hash: b.hash(facts.ID), updated: math.MinInt64, entry: entry{
			place: uint64(block.File)<<placeBits | uint64(line.Offset),
			check: maphash.Bytes(b.seed, line.Body),
			size:  uint32(len(line.Body)),
		}}
		if !facts.LastUpdated.IsZero() {
			f.updated = facts.LastUpdated.UnixMicro()
		}
		patients = patients[:0]
		if facts.Type != "Provenance" { // resolveProvenance finds its patients
			patients = source.Named(patients, facts)
		}
		if err := b.add(facts.Type, f, patients); err != nil {
			return err
		}
	}
	return nil
}

// typeOfBroken returns the resource type of a refused line, or "" when it is unknown.
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

func (b *builder) add(typ string, f found, patients []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !fhir.IsExportable(typ) {
		b.counted[typ] = plus(b.counted[typ], f.size)
		return nil
	}
	var numbers []uint32
	for _, id := range patients {
		numbers = append(numbers, b.number(id))
	}
	f.home = noPatient
	b.setPatients(&f.entry, numbers)
	l := b.lists[typ]
	if l == nil {
		l = new(list)
		b.lists[typ] = l
	}
	l.add(f)
	if l.n >= math.MaxUint32 || len(b.numbers) >= manyPatients {
		return fmt.Errorf("more than %d resources of a type or %d patients", uint32(math.MaxUint32), manyPatients)
	}
	return nil
}

// plus adds one resource to the size of a type.
func plus(size source.TypeSize, bytes uint32) source.TypeSize {
	return source.TypeSize{Resources: size.Resources + 1, Bytes: size.Bytes + int64(bytes) + 1}
}

// patientsOf returns the numbers of the patients of a resource, each once.
func (b *builder) patientsOf(e *entry) []uint32 {
	switch e.home {
	case noPatient:
		return nil
	case manyPatients:
		return b.several[e.place]
	}
	return []uint32{e.home}
}

// setPatients sets the patients of a resource to numbers, each of which occurs once.
func (b *builder) setPatients(e *entry, numbers []uint32) {
	switch len(numbers) {
	case 0:
		e.home = noPatient
	case 1:
		e.home = numbers[0]
	default:
		e.home = manyPatients
		b.several[e.place] = numbers
	}
}

// finish builds the index of the source.
func (b *builder) finish(ctx context.Context, s *Source) error {
	var settling errgroup.Group
	settling.SetLimit(4)
	for _, l := range b.lists {
		settling.Go(func() error { l.settle(); return ctx.Err() })
	}
	if err := settling.Wait(); err != nil {
		return err
	}
	if err := b.resolveProvenance(ctx, s); err != nil {
		return err
	}
	s.patients = slices.Sorted(maps.Keys(b.numbers))
	ranks := make([]uint32, len(s.patients)) // of the numbers
	for rank, id := range s.patients {
		ranks[b.numbers[id]] = uint32(rank)
	}
	b.numbers = nil
	s.sizes.Types = b.counted
	s.kinds, s.several = make(map[string]kind, len(b.lists)), map[uint64][]uint32{}
	for typ := range b.lists {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.shrink(s, typ, ranks)
	}
	s.sizes.Patients = s.sizes.Types["Patient"].Resources
	slices.SortFunc(b.problems, func(x, y located) int {
		return cmp.Or(cmp.Compare(x.file, y.file), cmp.Compare(x.line, y.line))
	})
	for _, p := range b.problems {
		s.problems = append(s.problems, p.Problem)
	}
	if more := b.broken - int64(len(b.problems)); more > 0 {
		s.problems = append(s.problems, source.Problem{
			Place: "further lines", What: fmt.Sprintf("%d more lines cannot be served", more),
		})
	}
	return nil
}

// shrink moves one type into the source. A resource about several patients gets an entry for each.
func (b *builder) shrink(s *Source, typ string, ranks []uint32) {
	l := b.lists[typ]
	k := kind{entries: make([]entry, 0, l.n)}
	var size source.TypeSize
	var homes []uint32
	for i := range l.n {
		f := *l.at(i)
		if i%chunkSize == chunkSize-1 {
			l.chunks[i/chunkSize] = nil // free
		}
		size = plus(size, f.size)
		if fhir.IsReferenced(typ) {
			k.ids, k.entries = append(k.ids, f.hash[0]), append(k.entries, f.entry)
			continue
		}
		homes = homes[:0]
		for _, number := range b.patientsOf(&f.entry) {
			homes = append(homes, ranks[number])
		}
		slices.Sort(homes)
		for _, home := range homes {
			e := f.entry
			e.home = home
			k.entries = append(k.entries, e)
		}
		switch {
		case len(homes) == 0:
			b.homeless++
		case len(homes) > 1 && typ == "Provenance":
			s.several[f.place] = slices.Clone(homes)
		}
	}
	if !fhir.IsReferenced(typ) {
		slices.SortFunc(k.entries, func(x, y entry) int {
			return cmp.Or(cmp.Compare(x.home, y.home), cmp.Compare(x.place, y.place))
		})
	}
	s.kinds[typ], s.sizes.Types[typ] = k, size
}
