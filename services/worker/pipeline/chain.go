package pipeline

import (
	"github.com/sluice-fhir/sluice/pkg/elements"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// stage is one step between the guard and the file. It returns the line that goes on, which may be valid only until its
// next call, or nil for a line that is not exported. A stage knows no other.
type stage func(line []byte) ([]byte, error)

// chain has the stages that the request asks for, in the order of docs/ARCHITECTURE.md. Without any the bytes of a line
// pass as they are.
type chain struct {
	stages  []stage
	dropped int64 // lines that did not pass
}

// newChain returns the chain of one type. An error is permanent: this version cannot carry out the request.
func (w *Worker) newChain(request export.Request, typ string) (*chain, error) {
	var c chain
	for _, add := range []func(export.Request, string) (stage, error){windowStage, w.filterStage, elementsStage} {
		next, err := add(request, typ)
		if err != nil {
			return nil, export.Permanent("this version cannot carry out the request: %v", err)
		}
		if next != nil {
			c.stages = append(c.stages, next)
		}
	}
	return &c, nil
}

// newSelection returns the part of the chain that only drops lines.
func (w *Worker) newSelection(request export.Request, typ string) (*chain, error) {
	request.Elements = nil
	return w.newChain(request, typ)
}

// pass returns what is written of the line, or nil.
func (c *chain) pass(line []byte) (_ []byte, err error) {
	for _, next := range c.stages {
		if line, err = next(line); err != nil {
			return nil, err
		}
		if line == nil {
			c.dropped++
			return nil, nil
		}
	}
	return line, nil
}

// filterOf returns the filter of the queries of `_typeFilter`, nil for a type without one: it is not filtered (P-31).
func (w *Worker) filterOf(request export.Request, typ string) (*typefilter.Filter, error) {
	var queries []typefilter.Query
	for _, text := range request.Filters {
		query, err := typefilter.Parse(text)
		if err != nil {
			return nil, err
		}
		if query.Type() == typ {
			queries = append(queries, query)
		}
	}
	return typefilter.Compile(typ, queries, w.Bases), nil
}

// filterStage passes the lines that match a query of `_typeFilter`.
func (w *Worker) filterStage(request export.Request, typ string) (stage, error) {
	filter, err := w.filterOf(request, typ)
	if filter == nil {
		return nil, err
	}
	return func(line []byte) ([]byte, error) {
		matches, err := filter.Matches(line)
		if err != nil || !matches {
			return nil, err
		}
		return line, nil
	}, nil
}

// elementsStage keeps the elements that `_elements` names, beside the mandatory ones (P-19).
func elementsStage(request export.Request, typ string) (stage, error) {
	if len(request.Elements) == 0 {
		return nil, nil
	}
	selection, err := elements.Parse(request.Elements)
	if err != nil {
		return nil, err
	}
	projection := selection.For(typ)
	if projection == nil {
		return nil, nil
	}
	var buffer []byte
	return func(line []byte) (_ []byte, err error) {
		buffer, err = projection.Apply(buffer[:0], line)
		return buffer, err
	}, nil
}
