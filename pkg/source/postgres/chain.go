package postgres

import (
	"slices"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// chain finds whom each Provenance is about that targets other Provenance, over any number of links, rings included. Each
// patient of each Provenance is passed on once, and a Provenance with more than maxPatients passes on only that it has
// many, so the result does not depend on the order.
type chain struct {
	number  map[string]int32 // of a name, in names
	names   []string         // ids of patients and Provenance
	nodes   map[int32]*node
	pending []step
	steps   int
}

// overflow is the number of many, the first name.
const overflow = 0

func newChain() *chain {
	c := &chain{number: map[string]int32{}, nodes: map[int32]*node{}}
	c.patient(many)
	return c
}

// node is one Provenance.
type node struct {
	from  []int32 // the Provenance that target it
	about []int32
	known int // patients among about
	many  bool
}

// step passes a patient on to the Provenance that target a node.
type step struct{ node, patient int32 }

// named returns the number of a name.
func (c *chain) named(name string) int32 {
	n, found := c.number[name]
	if !found {
		n = int32(len(c.names)) //nolint:gosec // memory ends before
		c.number[name] = n
		c.names = append(c.names, name)
	}
	return n
}

// patient returns the number of a patient or a sentinel. Ids of patients and Provenance do not mix.
func (c *chain) patient(id string) int32 { return c.named("Patient/" + id) }

func (c *chain) node(id string) int32 { return c.named(id) }

func (c *chain) link(provenance, target string) {
	from, to := c.node(provenance), c.node(target)
	for _, n := range []int32{from, to} {
		if c.nodes[n] == nil {
			c.nodes[n] = &node{}
		}
	}
	c.nodes[to].from = append(c.nodes[to].from, from)
}

// add adds a patient or a sentinel to a node.
func (c *chain) add(number, patient int32) {
	n := c.nodes[number]
	if n.many || slices.Contains(n.about, patient) {
		return
	}
	if patient != overflow && c.names[patient] < "Patient/"+source.Somebody {
		if n.known++; n.known > maxPatients {
			patient = overflow
		}
	}
	if patient == overflow {
		n.many, n.about = true, nil
	}
	n.about = append(n.about, patient)
	c.pending = append(c.pending, step{number, patient})
}

// run passes everything on.
func (c *chain) run() {
	for len(c.pending) > 0 {
		next := c.pending[len(c.pending)-1]
		c.pending = c.pending[:len(c.pending)-1]
		for _, from := range c.nodes[next.node].from {
			c.steps++
			c.add(from, next.patient)
		}
	}
}

// about yields the id and each patient of each Provenance.
func (c *chain) about(yield func(id, patient string) bool) {
	for number, n := range c.nodes {
		for _, patient := range n.about {
			if !yield(c.names[number], c.names[patient][len("Patient/"):]) {
				return
			}
		}
	}
}
