// Package elements reduces resources to the root elements that a client asks for (`_elements`, conformance P-19 to P-21).
//
// A reduced resource keeps its type, id and meta, and, so that no reader takes it for more than it is, every mandatory and
// every modifier element of its type, and it has the tag SUBSETTED. The bytes of what is kept do not change, nor does their
// order. Types without a known list of elements, and those that no entry names, stay whole and get no tag.
package elements
