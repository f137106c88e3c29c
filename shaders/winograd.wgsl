{#- The transforms of Winograd's minimal filtering F(M x M, 3 x 3), one dimension
    at a time (Lavin and Gray, arXiv:1509.09308): y = AT ((G g) * (BT d)) for M + 2
    values d and three weights g. M = 2 interpolates at 0, 1, -1 and infinity;
    M = 4 at 0, +-3/4, +-3/2 and infinity, whose error in 32 bits is less than half
    that of the usual +-1, +-2 (Barabasz et al., arXiv:1803.10986, on choosing
    points), and whose A and B are exact. Value i of the argument is
    the name d ~ i ~ e, of the result the `let` out ~ i ~ end. -#}
{# BT d: M + 2 values to M + 2. #}
{% macro input_row(m, d, e, out, end="") %}
{% if m == 2 %}
    let {{ out }}0{{ end }} = {{ d }}0{{ e }} - {{ d }}2{{ e }};
    let {{ out }}1{{ end }} = {{ d }}2{{ e }} + {{ d }}1{{ e }};
    let {{ out }}2{{ end }} = {{ d }}2{{ e }} - {{ d }}1{{ e }};
    let {{ out }}3{{ end }} = {{ d }}3{{ e }} - {{ d }}1{{ e }};
{% else %}
    let {{ out }}e{{ end }} = {{ d }}4{{ e }} - 2.25 * {{ d }}2{{ e }};
    let {{ out }}o{{ end }} = 0.75 * {{ d }}3{{ e }} - 1.6875 * {{ d }}1{{ e }};
    let {{ out }}f{{ end }} = {{ d }}4{{ e }} - 0.5625 * {{ d }}2{{ e }};
    let {{ out }}p{{ end }} = 1.5 * {{ d }}3{{ e }} - 0.84375 * {{ d }}1{{ e }};
    let {{ out }}0{{ end }} = 1.265625 * {{ d }}0{{ e }} - 2.8125 * {{ d }}2{{ e }} + {{ d }}4{{ e }};
    let {{ out }}1{{ end }} = {{ out }}e{{ end }} + {{ out }}o{{ end }};
    let {{ out }}2{{ end }} = {{ out }}e{{ end }} - {{ out }}o{{ end }};
    let {{ out }}3{{ end }} = {{ out }}f{{ end }} + {{ out }}p{{ end }};
    let {{ out }}4{{ end }} = {{ out }}f{{ end }} - {{ out }}p{{ end }};
    let {{ out }}5{{ end }} = 1.265625 * {{ d }}1{{ e }} - 2.8125 * {{ d }}3{{ e }} + {{ d }}5{{ e }};
{% endif %}
{% endmacro %}
{# AT m: M + 2 products to M results. #}
{% macro output_row(m, d, e, out, end="") %}
{% if m == 2 %}
    let {{ out }}0{{ end }} = {{ d }}0{{ e }} + {{ d }}1{{ e }} + {{ d }}2{{ e }};
    let {{ out }}1{{ end }} = {{ d }}1{{ e }} - {{ d }}2{{ e }} + {{ d }}3{{ e }};
{% else %}
    let {{ out }}s{{ end }} = {{ d }}1{{ e }} + {{ d }}2{{ e }};
    let {{ out }}t{{ end }} = {{ d }}3{{ e }} + {{ d }}4{{ e }};
    let {{ out }}u{{ end }} = {{ d }}1{{ e }} - {{ d }}2{{ e }};
    let {{ out }}v{{ end }} = {{ d }}3{{ e }} - {{ d }}4{{ e }};
    let {{ out }}0{{ end }} = {{ d }}0{{ e }} + {{ out }}s{{ end }} + {{ out }}t{{ end }};
    let {{ out }}1{{ end }} = 0.75 * {{ out }}u{{ end }} + 1.5 * {{ out }}v{{ end }};
    let {{ out }}2{{ end }} = 0.5625 * {{ out }}s{{ end }} + 2.25 * {{ out }}t{{ end }};
    let {{ out }}3{{ end }} = 0.421875 * {{ out }}u{{ end }} + 3.375 * {{ out }}v{{ end }} + {{ d }}5{{ e }};
{% endif %}
{% endmacro %}
{# A y: gradients of M results to those of M + 2 products. #}
{% macro output_row_grad(m, d, e, out, end="") %}
{% if m == 2 %}
    let {{ out }}0{{ end }} = {{ d }}0{{ e }};
    let {{ out }}1{{ end }} = {{ d }}0{{ e }} + {{ d }}1{{ e }};
    let {{ out }}2{{ end }} = {{ d }}0{{ e }} - {{ d }}1{{ e }};
    let {{ out }}3{{ end }} = {{ d }}1{{ e }};
{% else %}
    let {{ out }}e{{ end }} = {{ d }}0{{ e }} + 0.5625 * {{ d }}2{{ e }};
    let {{ out }}o{{ end }} = 0.75 * {{ d }}1{{ e }} + 0.421875 * {{ d }}3{{ e }};
    let {{ out }}f{{ end }} = {{ d }}0{{ e }} + 2.25 * {{ d }}2{{ e }};
    let {{ out }}p{{ end }} = 1.5 * {{ d }}1{{ e }} + 3.375 * {{ d }}3{{ e }};
    let {{ out }}0{{ end }} = {{ d }}0{{ e }};
    let {{ out }}1{{ end }} = {{ out }}e{{ end }} + {{ out }}o{{ end }};
    let {{ out }}2{{ end }} = {{ out }}e{{ end }} - {{ out }}o{{ end }};
    let {{ out }}3{{ end }} = {{ out }}f{{ end }} + {{ out }}p{{ end }};
    let {{ out }}4{{ end }} = {{ out }}f{{ end }} - {{ out }}p{{ end }};
    let {{ out }}5{{ end }} = {{ d }}3{{ e }};
{% endif %}
{% endmacro %}
{# G g: three weights to M + 2. #}
{% macro weight_row(m, d, e, out, end="") %}
{% if m == 2 %}
    let {{ out }}e{{ end }} = 0.5 * ({{ d }}0{{ e }} + {{ d }}2{{ e }});
    let {{ out }}o{{ end }} = 0.5 * {{ d }}1{{ e }};
    let {{ out }}0{{ end }} = {{ d }}0{{ e }};
    let {{ out }}1{{ end }} = {{ out }}e{{ end }} + {{ out }}o{{ end }};
    let {{ out }}2{{ end }} = {{ out }}e{{ end }} - {{ out }}o{{ end }};
    let {{ out }}3{{ end }} = {{ d }}2{{ e }};
{% else %}
    let {{ out }}e{{ end }} = (-128.0 / 243.0) * ({{ d }}0{{ e }} + 0.5625 * {{ d }}2{{ e }});
    let {{ out }}o{{ end }} = (-32.0 / 81.0) * {{ d }}1{{ e }};
    let {{ out }}f{{ end }} = (32.0 / 243.0) * ({{ d }}0{{ e }} + 2.25 * {{ d }}2{{ e }});
    let {{ out }}p{{ end }} = (16.0 / 81.0) * {{ d }}1{{ e }};
    let {{ out }}0{{ end }} = (64.0 / 81.0) * {{ d }}0{{ e }};
    let {{ out }}1{{ end }} = {{ out }}e{{ end }} + {{ out }}o{{ end }};
    let {{ out }}2{{ end }} = {{ out }}e{{ end }} - {{ out }}o{{ end }};
    let {{ out }}3{{ end }} = {{ out }}f{{ end }} + {{ out }}p{{ end }};
    let {{ out }}4{{ end }} = {{ out }}f{{ end }} - {{ out }}p{{ end }};
    let {{ out }}5{{ end }} = {{ d }}2{{ e }};
{% endif %}
{% endmacro %}
{# GT u: gradients of M + 2 to those of three weights. #}
{% macro weight_row_grad(m, d, e, out, end="") %}
{% if m == 2 %}
    let {{ out }}s{{ end }} = 0.5 * ({{ d }}1{{ e }} + {{ d }}2{{ e }});
    let {{ out }}0{{ end }} = {{ d }}0{{ e }} + {{ out }}s{{ end }};
    let {{ out }}1{{ end }} = 0.5 * ({{ d }}1{{ e }} - {{ d }}2{{ e }});
    let {{ out }}2{{ end }} = {{ out }}s{{ end }} + {{ d }}3{{ e }};
{% else %}
    let {{ out }}s{{ end }} = (-128.0 / 243.0) * ({{ d }}1{{ e }} + {{ d }}2{{ e }});
    let {{ out }}t{{ end }} = (32.0 / 243.0) * ({{ d }}3{{ e }} + {{ d }}4{{ e }});
    let {{ out }}0{{ end }} = (64.0 / 81.0) * {{ d }}0{{ e }} + {{ out }}s{{ end }} + {{ out }}t{{ end }};
    let {{ out }}1{{ end }} = (-32.0 / 81.0) * ({{ d }}1{{ e }} - {{ d }}2{{ e }}) + (16.0 / 81.0) * ({{ d }}3{{ e }} - {{ d }}4{{ e }});
    let {{ out }}2{{ end }} = 0.5625 * {{ out }}s{{ end }} + 2.25 * {{ out }}t{{ end }} + {{ d }}5{{ e }};
{% endif %}
{% endmacro %}
{# The sum of M values from their A y, a combination along each axis. #}
{% set sum_weights = {2: [0.0, 1.0, 0.0, 0.0], 4: [-7.0 / 9.0, 14.0 / 9.0, 2.0 / 9.0, 0.0, 0.0, 7.0 / 16.0]} %}
