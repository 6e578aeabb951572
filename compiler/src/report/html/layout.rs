//! Places for the boxes of a graph, in layers from top to bottom, and paths for its edges.
//!
//! In the manner of Sugiyama: each box one layer below the lowest of those before it; long edges through a point in each layer between, shared by all
//! edges of one box; layers ordered against crossings; then across a layer the places nearest to the neighbours' that keep the order.

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

/// Between neighbours in a layer.
const GAP_X: f64 = 18.0;
/// Between layers.
const GAP_Y: f64 = 26.0;
/// How wide a point of a long edge is taken to be.
const POINT: f64 = 6.0;
/// Sweeps that order layers, and those that place boxes: drawings of a hundred boxes change no more after about half of them.
const ORDER_SWEEPS: usize = 12;
const PLACE_SWEEPS: usize = 16;

/// Width and height of a box.
pub(super) type Size = (f64, f64);

/// Where everything is.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Width and height of all of it.
    pub(super) size: Size,
    /// The upper left corner of each box.
    pub(super) places: Vec<(f64, f64)>,
    /// For each edge what `d` of its path is.
    pub(super) paths: Vec<String>,
}

/// A box or a point of a long edge.
struct Item {
    size: Size,
    layer: usize,
    /// The middle.
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// Lays out boxes with edges between them, by their positions. Edges make no cycle.
pub(super) fn layered(sizes: &[Size], edges: &[(usize, usize)]) -> Layout {
    let layers = layers_of(sizes.len(), edges);
    let mut items: Vec<Item> = sizes
        .iter()
        .zip(&layers)
        .map(|(&size, &layer)| Item { size, layer, x: 0.0, above: Vec::new(), below: Vec::new() })
        .collect();
    // Points of long edges: one chain for each box that they leave, as long as its longest edge.
    let mut chains: Vec<Vec<usize>> = vec![Vec::new(); sizes.len()];
    for &(from, to) in edges {
        let mut last = chains[from].last().copied().unwrap_or(from);
        while items[last].layer + 1 < layers[to] {
            let point = items.len();
            let layer = items[last].layer + 1;
            items.push(Item { size: (POINT, 0.0), layer, x: 0.0, above: Vec::new(), below: Vec::new() });
            link(&mut items, last, point);
            chains[from].push(point);
            last = point;
        }
    }
    let links: Vec<Vec<usize>> =
        edges.iter().map(|&(from, to)| chain_to(&chains[from], from, layers[to] - layers[from])).collect();
    for (&(_, to), through) in edges.iter().zip(&links) {
        link(&mut items, *through.last().expect("a chain begins with the box that it leaves"), to);
    }
    let n_layers = items.iter().map(|item| item.layer + 1).max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); n_layers];
    items.iter().enumerate().for_each(|(index, item)| order[item.layer].push(index));
    uncross(&items, &mut order);
    place(&mut items, &order);
    finish(&items, &order, sizes.len(), edges, &links)
}

/// The items that an edge over so many layers leaves: its box and the points of the chain, down to the layer above its end.
fn chain_to(chain: &[usize], from: usize, span: usize) -> Vec<usize> {
    [from].into_iter().chain(chain.iter().copied().take(span.saturating_sub(1))).collect()
}

fn link(items: &mut [Item], above: usize, below: usize) {
    if !items[above].below.contains(&below) {
        items[above].below.push(below);
        items[below].above.push(above);
    }
}

/// The layer of each box: the longest path to it, or right above its first reader where that makes edges no longer.
fn layers_of(n: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut graph = DiGraph::<(), ()>::new();
    let nodes: Vec<NodeIndex> = (0..n).map(|_| graph.add_node(())).collect();
    graph.extend_with_edges(edges.iter().map(|&(from, to)| (nodes[from], nodes[to])));
    let mut layers = vec![0; n];
    let sorted = toposort(&graph, None).expect("operands stand before their users");
    for node in &sorted {
        let below = layers[node.index()] + 1;
        for user in graph.neighbors(*node) {
            layers[user.index()] = layers[user.index()].max(below);
        }
    }
    // What a box alone reads, and all that it was made of, comes with the box when that moves.
    let mut follows = vec![false; n];
    let incoming = |node| graph.neighbors_directed(node, Direction::Incoming);
    for &node in &sorted {
        let is_alone = graph.neighbors(node).count() == 1;
        follows[node.index()] = is_alone && incoming(node).all(|before| follows[before.index()]);
    }
    // Moving a box down shortens what leaves it and lengthens what leads to it.
    for &node in sorted.iter().rev() {
        let lengthened = incoming(node).filter(|before| !follows[before.index()]).count();
        let first = graph.neighbors(node).map(|user| layers[user.index()]).min();
        if let Some(first) = first.filter(|_| lengthened <= graph.neighbors(node).count()) {
            layers[node.index()] = first - 1;
        }
    }
    layers
}

/// Orders each layer by the mean position of its neighbours in the one before, up and down in turn, and keeps the order with the fewest crossings.
fn uncross(items: &[Item], order: &mut Vec<Vec<usize>>) {
    let mut best = (crossings(items, order), order.clone());
    for sweep in 0..ORDER_SWEEPS {
        let is_down = sweep % 2 == 0;
        let n = order.len();
        for step in 1..n {
            let layer = if is_down { step } else { n - 1 - step };
            let beside = if is_down { layer - 1 } else { layer + 1 };
            let mut position = vec![0.0; items.len()];
            order[beside].iter().enumerate().for_each(|(at, &item)| position[item] = at as f64);
            order[layer].iter().enumerate().for_each(|(at, &item)| position[item] = at as f64);
            let wanted = |&item: &usize| {
                let near = if is_down { &items[item].above } else { &items[item].below };
                mean(near.iter().map(|&other| (position[other], 1.0))).unwrap_or(position[item])
            };
            let mut keyed: Vec<(f64, usize)> = order[layer].iter().map(|item| (wanted(item), *item)).collect();
            keyed.sort_by(|left, right| left.0.total_cmp(&right.0));
            order[layer] = keyed.into_iter().map(|(_, item)| item).collect();
        }
        let found = crossings(items, order);
        if found < best.0 {
            best = (found, order.clone());
        }
    }
    *order = best.1;
}

fn crossings(items: &[Item], order: &[Vec<usize>]) -> usize {
    let mut position = vec![0; items.len()];
    order.iter().for_each(|layer| layer.iter().enumerate().for_each(|(at, &item)| position[item] = at));
    let mut count = 0;
    for layer in order {
        let edges: Vec<(usize, usize)> = layer
            .iter()
            .flat_map(|&item| items[item].below.iter().map(move |&below| (item, below)))
            .map(|(item, below)| (position[item], position[below]))
            .collect();
        for (at, left) in edges.iter().enumerate() {
            count += edges[at + 1..].iter().filter(|right| left.0 < right.0 && right.1 < left.1).count();
        }
    }
    count
}

/// Gives each item its middle.
fn place(items: &mut [Item], order: &[Vec<usize>]) {
    for layer in order {
        let mut x = 0.0;
        for &item in layer {
            let width = items[item].size.0;
            items[item].x = x + width / 2.0;
            x += width + GAP_X;
        }
    }
    for sweep in 0..PLACE_SWEEPS {
        let is_down = sweep % 2 == 0;
        let layers: Vec<&Vec<usize>> = if is_down { order.iter().collect() } else { order.iter().rev().collect() };
        for layer in layers {
            let wanted: Vec<(f64, f64)> = layer
                .iter()
                .map(|&at| {
                    let item = &items[at];
                    let [first, second] = if is_down { [&item.above, &item.below] } else { [&item.below, &item.above] };
                    // Points of long edges hold together, so that these are straight.
                    let weight =
                        |other: usize| if items[other].size.1 == 0.0 && item.size.1 == 0.0 { 4.0 } else { 1.0 };
                    let of = |near: &[usize]| mean(near.iter().map(|&other| (items[other].x, weight(other))));
                    let x = of(first).or_else(|| of(second)).unwrap_or(item.x);
                    (x, if item.size.1 == 0.0 { 2.0 } else { 1.0 })
                })
                .collect();
            let widths: Vec<f64> = layer.iter().map(|&item| items[item].size.0).collect();
            let placed = apart(&wanted, &widths);
            layer.iter().zip(placed).for_each(|(&item, x)| items[item].x = x);
        }
    }
}

fn mean(weighted: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, weight) = weighted.fold((0.0, 0.0), |(sum, total), (x, weight)| (sum + x * weight, total + weight));
    if weight == 0.0 { None } else { Some(sum / weight) }
}

/// The middles nearest to the wanted ones, by the sum of weighted squares, with boxes in their order and gaps between them: pooling neighbours that would
/// overlap gives the exact answer.
fn apart(wanted: &[(f64, f64)], widths: &[f64]) -> Vec<f64> {
    // Where each box would be if the first one's middle were at 0.
    let mut shifts = vec![0.0; widths.len()];
    for at in 1..widths.len() {
        shifts[at] = shifts[at - 1] + (widths[at - 1] + widths[at]) / 2.0 + GAP_X;
    }
    /// Boxes that touch.
    struct Pool {
        mean: f64,
        weight: f64,
        n: usize,
    }
    let mut pools: Vec<Pool> = Vec::new();
    for (&(x, weight), shift) in wanted.iter().zip(&shifts) {
        let mut pool = Pool { mean: x - shift, weight, n: 1 };
        while let Some(before) = pools.pop_if(|before| pool.mean < before.mean) {
            let weight = before.weight + pool.weight;
            let mean = (before.mean * before.weight + pool.mean * pool.weight) / weight;
            pool = Pool { mean, weight, n: before.n + pool.n };
        }
        pools.push(pool);
    }
    let means = pools.iter().flat_map(|pool| std::iter::repeat_n(pool.mean, pool.n));
    means.zip(&shifts).map(|(mean, shift)| mean + shift).collect()
}

fn finish(
    items: &[Item],
    order: &[Vec<usize>],
    n_boxes: usize,
    edges: &[(usize, usize)],
    links: &[Vec<usize>],
) -> Layout {
    let left = items.iter().map(|item| item.x - item.size.0 / 2.0).fold(f64::INFINITY, f64::min);
    let left = if left.is_finite() { left } else { 0.0 };
    let mut tops = Vec::new();
    let mut y = 0.0;
    for layer in order {
        let height = layer.iter().map(|&item| items[item].size.1).fold(0.0, f64::max);
        tops.push((y, y + height));
        y += height + GAP_Y;
    }
    let places = items[..n_boxes].iter().map(|item| (item.x - item.size.0 / 2.0 - left, tops[item.layer].0)).collect();
    let paths = edges.iter().zip(links).map(|(&(from, to), through)| {
        let mut x = items[from].x - left;
        let mut y = tops[items[from].layer].0 + items[from].size.1;
        let mut path = format!("M{} {}", super::markup::Px(x), super::markup::Px(y));
        for &next in through[1..].iter().chain([&to]) {
            let (next_x, (top, bottom)) = (items[next].x - left, tops[items[next].layer]);
            let start = tops[items[next].layer - 1].1;
            path += &segment((x, y), (next_x, top), start);
            (x, y) = (next_x, top);
            if next != to {
                path += &format!("V{}", super::markup::Px(bottom));
                y = bottom;
            }
        }
        path
    });
    let paths = paths.collect();
    let right = items.iter().map(|item| item.x + item.size.0 / 2.0 - left).fold(0.0, f64::max);
    Layout { size: (right, (y - GAP_Y).max(0.0)), places, paths }
}

/// From the end of one layer into the next: down to where the layer ends, then across in a curve.
fn segment((x, y): (f64, f64), (next_x, next_y): (f64, f64), layer_end: f64) -> String {
    use super::markup::Px;
    let down = if y < layer_end { format!("V{}", Px(layer_end)) } else { String::new() };
    if (x - next_x).abs() < 0.5 {
        return format!("{down}V{}", Px(next_y));
    }
    let middle = Px((y.max(layer_end) + next_y) / 2.0);
    format!("{down}C{} {middle} {} {middle} {} {}", Px(x), Px(next_x), Px(next_x), Px(next_y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(layout: &Layout, sizes: &[Size]) -> bool {
        let boxes: Vec<_> = layout.places.iter().zip(sizes).collect();
        boxes.iter().enumerate().any(|(at, ((x, y), (w, h)))| {
            boxes[at + 1..]
                .iter()
                .any(|((x2, y2), (w2, h2))| *x < x2 + w2 && x2 < &(x + w) && *y < y2 + h2 && y2 < &(y + h))
        })
    }

    #[test]
    fn users_lie_below_and_nothing_overlaps() {
        let sizes: Vec<Size> =
            (0..40).map(|at| (40.0 + f64::from(at % 7) * 13.0, 20.0 + f64::from(at % 3) * 9.0)).collect();
        let edges: Vec<(usize, usize)> =
            (1..40).flat_map(|to| [(to * 5 % to, to), (to / 2, to), (to - 1, to)]).collect();
        let layout = layered(&sizes, &edges);
        assert!(edges.iter().all(|&(from, to)| layout.places[from].1 + sizes[from].1 < layout.places[to].1));
        assert!(!overlap(&layout, &sizes));
        let inside = |((x, y), (w, h)): (&(f64, f64), &Size)| {
            0.0 <= *x && x + w <= layout.size.0 + 0.01 && y + h <= layout.size.1 + 0.01
        };
        assert!(layout.places.iter().zip(&sizes).all(inside));
    }

    #[test]
    fn chains_are_straight_and_crossings_undone() {
        let layout = layered(&[(50.0, 20.0), (30.0, 20.0), (80.0, 20.0)], &[(0, 1), (1, 2)]);
        assert_eq!(layout.paths, ["M40 20V46", "M40 66V92"]);
        // Two chains whose ends are declared crosswise.
        let crossed = layered(&[(20.0, 10.0); 4], &[(0, 3), (1, 2)]);
        assert!(crossed.paths.iter().all(|path| !path.contains('C')), "{:?}", crossed.paths);
    }

    #[test]
    fn what_is_read_late_lies_low() {
        // A chain of four, and two boxes that become one, which its last reads.
        let edges = [(0, 1), (1, 2), (2, 3), (4, 6), (5, 6), (6, 3)];
        assert_eq!(layers_of(7, &edges), [0, 1, 2, 3, 1, 1, 2]);
    }

    #[test]
    fn nothing_and_single_boxes_are_drawn_as_well() {
        assert_eq!(layered(&[], &[]).size, (0.0, 0.0));
        assert_eq!(layered(&[(10.0, 10.0)], &[]).places, [(0.0, 0.0)]);
    }
}
