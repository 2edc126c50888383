// What the binding sources share. Functions take parameter structs, and a struct is bound by a list of its fields:
//
//   bind_struct<Views>(module, "Views", "Samples of one or two views.",
//                      field("x", &Views::x), field("m", &Views::m), optional("threads", &Views::threads));
//
// In Python every field is a keyword of the constructor and an attribute. A pointer is an integer, the address that
// torch, NumPy and CuPy arrays all provide; every other type converts as pybind11 does it (numbers, bools, bound enums,
// bound structs, std::vector). An optional field defaults to the initialiser of the member in the C++ struct.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace py = pybind11;

void bind_cpu(py::module_& module);   // cpu.cpp
void bind_cuda(py::module_& module);  // cuda.cpp
#ifdef XMODAL_HOST_EMULATION
void bind_host(py::module_& module);  // tests/host/host.cpp
#endif

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
using InPython = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;

template <class Struct, class T, bool kRequired>
struct Field {
  const char* name;
  T Struct::* member;

  void set(Struct& target, InPython<T> value) const {
    if constexpr (std::is_pointer_v<T>)
      target.*member = reinterpret_cast<T>(value);
    else
      target.*member = std::move(value);
  }
  InPython<T> get(const Struct& source) const {
    if constexpr (std::is_pointer_v<T>)
      return reinterpret_cast<std::uintptr_t>(source.*member);
    else
      return source.*member;
  }
  auto argument() const {
    if constexpr (kRequired)
      return py::arg(name);
    else
      return py::arg(name) = get(Struct{});
  }
};

// A field that callers must give. Types of fields are bound before the structs that contain them.
template <class Struct, class T>
Field<Struct, T, true> field(const char* name, T Struct::* member) {
  return {name, member};
}

// A field that callers may leave out.
template <class Struct, class T>
Field<Struct, T, false> optional(const char* name, T Struct::* member) {
  return {name, member};
}

template <class Struct, class... T, bool... kRequired>
py::class_<Struct> bind_struct(py::module_& module, const char* name, const char* doc,
                               Field<Struct, T, kRequired>... fields) {
  py::class_<Struct> type(module, name, doc);
  type.def(py::init([fields...](InPython<T>... values) {
             Struct result{};
             (fields.set(result, std::move(values)), ...);
             return result;
           }),
           py::kw_only(), fields.argument()...);
  (type.def_property(
       fields.name, [fields](const Struct& source) { return fields.get(source); },
       [fields](Struct& target, InPython<T> value) { fields.set(target, std::move(value)); }),
   ...);
  return type;
}
